/* Fails the Nth write, sync, truncation, rename or close below a folder, once or from then on.
 *
 * Loaded with LD_PRELOAD; asleep until fault_arm is called in the process itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_int armed, count;
static int target, code, forever;

void fault_arm(const char *below, int n, int error, int keep) {
    strncpy(folder, below, PATH_MAX - 1);
    target = n;
    code = error;
    forever = keep;
    count = 0;
    armed = 1;
}

int fault_disarm(void) {
    armed = 0;
    return count;
}

static int inside(const char *path) {
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int fails(void) {
    int now = atomic_fetch_add(&count, 1) + 1;
    return now == target || (forever && now > target);
}

static int hits(int handle) {
    char link[64], path[PATH_MAX];
    if (!armed)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return inside(path) && fails();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL do { errno = code; return -1; } while (0)

ssize_t write(int handle, const void *data, size_t size) {
    if (hits(handle)) FAIL;
    return REAL(write)(handle, data, size);
}

ssize_t pwrite(int handle, const void *data, size_t size, off_t at) {
    if (hits(handle)) FAIL;
    return REAL(pwrite)(handle, data, size, at);
}

ssize_t pwrite64(int handle, const void *data, size_t size, off64_t at) {
    if (hits(handle)) FAIL;
    return REAL(pwrite64)(handle, data, size, at);
}

int fsync(int handle) {
    if (hits(handle)) FAIL;
    return REAL(fsync)(handle);
}

int fdatasync(int handle) {
    if (hits(handle)) FAIL;
    return REAL(fdatasync)(handle);
}

int ftruncate(int handle, off_t size) {
    if (hits(handle)) FAIL;
    return REAL(ftruncate)(handle, size);
}

int ftruncate64(int handle, off64_t size) {
    if (hits(handle)) FAIL;
    return REAL(ftruncate64)(handle, size);
}

int rename(const char *from, const char *to) {
    if (armed && inside(to) && fails()) FAIL;
    return REAL(rename)(from, to);
}

int close(int handle) {
    int bad = hits(handle);
    int result = REAL(close)(handle); /* Linux frees the handle in any case */
    if (bad) FAIL;
    return result;
}
