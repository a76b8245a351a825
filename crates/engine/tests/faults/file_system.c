/* Answers of a network file system, put between the program and the C library (LD_PRELOAD).
 *
 * ATTRFLOW_TEST_FAULT, for paths that contain ATTRFLOW_TEST_BELOW:
 *   stale    of opens of files that were there, looks, renames and removals every 11th says ESTALE, and every 13th read
 *   late     files and folders younger than ATTRFLOW_TEST_SECONDS are not there
 *   repeat   renames, links, new folders and removals are done twice, and the second answer is given
 *   nolock   every lock is granted
 *   device   the file system has another number
 *   count    nothing, but each file that is opened for reading adds a line to ATTRFLOW_TEST_OPENED
 * Several may be given, with commas. Nothing happens while the file ATTRFLOW_TEST_SWITCH is not there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

static int has(const char *fault) {
    const char *faults = getenv("ATTRFLOW_TEST_FAULT"), *on = getenv("ATTRFLOW_TEST_SWITCH");
    if (faults == NULL || strstr(faults, fault) == NULL) return 0;
    return on == NULL || syscall(SYS_faccessat, AT_FDCWD, on, F_OK) == 0;
}

static int concerns(const char *path) {
    const char *below = getenv("ATTRFLOW_TEST_BELOW");
    return path != NULL && below != NULL && strstr(path, below) != NULL;
}

/* Whether this request is the one of so many that fails. */
static int nth(atomic_int *count, int every) { return atomic_fetch_add(count, 1) % every == every - 1; }

static int stale(const char *path) {
    static atomic_int count;
    if (has("stale") && concerns(path) && nth(&count, 11)) {
        errno = ESTALE;
        return 1;
    }
    return 0;
}

static int late(const char *path) {
    if (!has("late") || !concerns(path)) return 0;
    struct statx found;
    if (syscall(SYS_statx, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BTIME | STATX_CTIME, &found) != 0) return 0;
    const char *seconds = getenv("ATTRFLOW_TEST_SECONDS");
    if (time(NULL) - found.stx_ctime.tv_sec < (seconds != NULL ? atoi(seconds) : 2)) {
        errno = ENOENT;
        return 1;
    }
    return 0;
}

static int refused(const char *path) { return stale(path) || late(path); }

static void count_opened(const char *path, int flags) {
    const char *log = getenv("ATTRFLOW_TEST_OPENED");
    if (log == NULL || !has("count") || !concerns(path) || (flags & O_ACCMODE) != O_RDONLY) return;
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT, 0644);
    if (file < 0) return;
    dprintf(file, "%s\n", path);
    close(file);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = va_arg(arguments, int);
    va_end(arguments);
    /* What this program makes, no other host has replaced. */
    if (flags & O_CREAT ? !(flags & (O_TRUNC | O_EXCL)) && stale(path) : refused(path)) return -1;
    int file = REAL(open64)(path, flags, mode);
    if (file >= 0) count_opened(path, flags);
    return file;
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = va_arg(arguments, int);
    va_end(arguments);
    return open64(path, flags, mode);
}

DIR *opendir(const char *path) {
    if (stale(path)) return NULL;
    return REAL(opendir)(path);
}

ssize_t read(int file, void *bytes, size_t count) {
    static atomic_int reads;
    if (has("stale")) {
        char link[64], path[4096];
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t length = readlink(link, path, sizeof path - 1);
        path[length > 0 ? length : 0] = 0;
        if (concerns(path) && nth(&reads, 13)) {
            errno = ESTALE;
            return -1;
        }
    }
    return REAL(read)(file, bytes, count);
}

int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict found) {
    if (path != NULL && path[0] != 0 && refused(path)) return -1;
    int result = syscall(SYS_statx, folder, path, flags, mask, found);
    if (result == 0 && has("device")) found->stx_dev_minor += 77;
    return result;
}

int rename(const char *from, const char *to) {
    if (stale(to)) return -1;
    int result = REAL(rename)(from, to);
    return result == 0 && has("repeat") && concerns(to) ? REAL(rename)(from, to) : result;
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    if (stale(to)) return -1;
    int result = REAL(linkat)(a, from, b, to, flags);
    return result == 0 && has("repeat") && concerns(to) ? REAL(linkat)(a, from, b, to, flags) : result;
}

int mkdir(const char *path, mode_t mode) {
    int result = REAL(mkdir)(path, mode);
    return result == 0 && has("repeat") && concerns(path) ? REAL(mkdir)(path, mode) : result;
}

int unlink(const char *path) {
    if (stale(path)) return -1;
    int result = REAL(unlink)(path);
    return result == 0 && has("repeat") && concerns(path) ? REAL(unlink)(path) : result;
}

int flock(int file, int operation) { return has("nolock") ? 0 : REAL(flock)(file, operation); }

int fcntl64(int file, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (has("nolock") && (command == F_OFD_SETLK || command == F_OFD_SETLKW)) return 0;
    return REAL(fcntl64)(file, command, argument);
}

int fcntl(int file, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return fcntl64(file, command, argument);
}
