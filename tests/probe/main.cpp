// probe INPUT OUTPUT: runs the cases that the file INPUT names and writes what they made. probe alone lists them.
//
// Both files: "JPUPROBE", then in the machine's byte order the version (4 bytes) and the number of cases (4 bytes);
// for each case its name (32 bytes, filled up with zeros), the number of items (8 bytes), the bytes of the data
// (8 bytes), the data. Nothing is padded.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "probe.h"

namespace {

using jpu::probe::Case;
using jpu::probe::kThreads;
using jpu::probe::Memory;

constexpr char kMagic[8] = {'J', 'P', 'U', 'P', 'R', 'O', 'B', 'E'};
constexpr uint32_t kVersion = 1;

struct FileHeader {
  char magic[8];
  uint32_t version, cases;
};

struct CaseHeader {
  char name[32];
  uint64_t items, bytes;
};

void read(std::istream& file, void* to, size_t bytes) {
  file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
  if (!file) throw std::runtime_error("input: expected " + std::to_string(bytes) + " bytes more, got the end");
}

void write(std::ostream& file, const void* from, size_t bytes) {
  file.write(static_cast<const char*>(from), static_cast<std::streamsize>(bytes));
}

Case find(const std::string& name) {
  for (const Case& known : jpu::probe::cases()) {
    if (name == known.name) return known;
  }
  throw std::runtime_error("input: expected a case that the probe has, got '" + name + "'");
}

std::vector<char> run(const Case& known, const CaseHeader& header, const std::vector<char>& input) {
  const uint64_t expected = header.items * static_cast<uint64_t>(known.input_bytes);
  if (header.items == 0 || header.items % kThreads != 0 || header.bytes != expected) {
    throw std::runtime_error("expected a multiple of " + std::to_string(kThreads) + " items of " +
                             std::to_string(known.input_bytes) + " bytes, got " + std::to_string(header.items) +
                             " items, " + std::to_string(header.bytes) + " bytes");
  }
  std::vector<char> output(header.items * static_cast<uint64_t>(known.output_bytes));
  Memory source(static_cast<int64_t>(input.size())), destination(static_cast<int64_t>(output.size()));
  source.write(input.data());
  known.run(source.data(), destination.data(), static_cast<int64_t>(header.items));
  destination.read(output.data());
  return output;
}

void run_file(const char* input_path, const char* output_path) {
  std::ifstream input(input_path, std::ios::binary);
  if (!input) throw std::runtime_error(std::string("input: cannot read ") + input_path);
  FileHeader file;
  read(input, &file, sizeof file);
  if (std::memcmp(file.magic, kMagic, sizeof kMagic) != 0 || file.version != kVersion) {
    throw std::runtime_error("input: expected a file of version " + std::to_string(kVersion) + ", got another");
  }
  std::ofstream output(output_path, std::ios::binary);
  write(output, &file, sizeof file);
  for (uint32_t i = 0; i < file.cases; ++i) {
    CaseHeader header;
    read(input, &header, sizeof header);
    header.name[sizeof header.name - 1] = 0;
    std::vector<char> data(header.bytes);
    read(input, data.data(), data.size());
    const Case known = find(header.name);
    try {
      const std::vector<char> made = run(known, header, data);
      header.bytes = made.size();
      write(output, &header, sizeof header);
      write(output, made.data(), made.size());
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(std::string(header.name) + ": " + error.what());
    }
  }
  output.close();
  if (!output) throw std::runtime_error(std::string("output: cannot write ") + output_path);
  std::printf("%s\n", jpu::probe::target().c_str());
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count == 1) {
      for (const Case& known : jpu::probe::cases()) std::printf("%s\n", known.name);
    } else if (count == 3) {
      run_file(arguments[1], arguments[2]);
    } else {
      std::fprintf(stderr, "probe: expected INPUT and OUTPUT, or nothing, got %d arguments\n", count - 1);
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "probe: %s\n", error.what());
    return 1;
  }
  return 0;
}
