/* Loaded before libc by the tests of `host.rs`: moves the clocks of the process, and decides what a name resolves to. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* What is added to the wall clock and to the boot-time clock, in seconds. A file of the test, which changes it. */
static volatile long long *offsets(void) {
    static long long none[2];
    static volatile long long *mapped;
    if (mapped == NULL) {
        const char *path = getenv("ENLIST_TEST_CLOCKS");
        int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
        void *at = file < 0 ? MAP_FAILED : mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
        if (file >= 0) {
            close(file);
        }
        mapped = at == MAP_FAILED ? none : at;
    }
    return mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*original)(clockid_t, struct timespec *);
    if (original == NULL) {
        original = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    int result = original(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_BOOTTIME)) {
        now->tv_sec += offsets()[clock == CLOCK_BOOTTIME];
    }
    return result;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    static int (*original)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (original == NULL) {
        original = (int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(
            RTLD_NEXT, "getaddrinfo");
    }
    char address[64] = "";
    const char *path = getenv("ENLIST_TEST_ADDRESS");
    if (path != NULL && node != NULL && strcmp(node, "etcd.enlist.test") == 0) {
        FILE *file = fopen(path, "re");
        if (file != NULL) {
            if (fgets(address, sizeof address, file) != NULL) {
                node = address;
            }
            fclose(file);
        }
    }
    return original(node, service, hints, found);
}
