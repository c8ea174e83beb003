"""The cost sheet: what each kernel needs, what it is counted to do, and how long that takes a device at least."""
