"""Wall clocks that are wrong, and that jump, for one process: a shim in front of libc's."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_ms;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_OFFSET");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *mapped = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) offset_ms = mapped;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int done = syscall(SYS_clock_gettime, id, at);
    if (done == 0 && offset_ms && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        int64_t ns = at->tv_nsec + (*offset_ms % 1000) * 1000000;
        at->tv_sec += *offset_ms / 1000;
        if (ns < 0) { ns += 1000000000; at->tv_sec -= 1; }
        if (ns >= 1000000000) { ns -= 1000000000; at->tv_sec += 1; }
        at->tv_nsec = ns;
    }
    return done;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class WallClock:
    """The wall clock of the processes that get its `environment`."""

    def __init__(self, shim: Path, file: Path, ahead_s: float) -> None:
        self._file = file
        self.set(ahead_s)
        self.environment = {"LD_PRELOAD": str(shim), "CLOCK_OFFSET": str(file)}

    def set(self, ahead_s: float) -> None:
        """Have it jump: so far ahead of this machine's it is from now on."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", round(ahead_s * 1000)))


def build_shim(directory: Path) -> Path:
    """Compile it; skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("clocks cannot be skewed: there is neither gcc nor cc")
    source, shim = directory / "clock.c", directory / "clock.so"
    source.write_text(_SHIM)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl"], check=True
    )
    return shim
