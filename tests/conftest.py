"""Settings of the test suite."""

import os

# One thread per process, here and in the processes that tests start: tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
