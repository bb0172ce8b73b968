/* A disk that misbehaves as DISK_FAULT says, for data files of storage cases alone; to be preloaded (LD_PRELOAD).
 *
 * The fault begins after DISK_FAULT_AFTER calls of its kind since the last data file was made.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static atomic_int calls;

static int is(const char *fault)
{
    const char *said = getenv("DISK_FAULT");
    return said && !strcmp(said, fault);
}

static int number(const char *name)
{
    const char *said = getenv(name);
    return said ? atoi(said) : 0;
}

static int named(const char *path)
{
    return strstr(path, "/.clustergauge-") && strstr(path, "/data-");
}

/* The path of an open file, into 4096 bytes. */
static int whose(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    if (length < 0)
        return 0;
    path[length] = 0;
    return 1;
}

static int due(int fd, const char *fault)
{
    char path[4096];
    return is(fault) && whose(fd, path) && named(path) && atomic_fetch_add(&calls, 1) >= number("DISK_FAULT_AFTER");
}

static int failed(int reason)
{
    errno = reason;
    return -1;
}

static void wait_ms(int ms)
{
    struct timespec span = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&span, NULL);
}

static struct iovec half(const struct iovec *all)
{
    struct iovec less = *all;
    if (less.iov_len > 512)
        less.iov_len = less.iov_len / 1024 * 512;
    return less;
}

static ssize_t read_at(int fd, const struct iovec *to, int count, off64_t at, int flags)
{
    if (due(fd, "read_eio"))
        return failed(EIO);
    if (due(fd, "short_read")) {
        struct iovec less = half(to);
        return REAL(preadv64v2)(fd, &less, 1, at, flags);
    }
    if (due(fd, "slow"))
        wait_ms(number("DISK_FAULT_MS"));
    ssize_t done = REAL(preadv64v2)(fd, to, count, at, flags);
    if (done > 0 && due(fd, "flip"))
        ((char *)to->iov_base)[done / 2] ^= 4;
    return done;
}

static ssize_t write_at(int fd, const struct iovec *from, int count, off64_t at, int flags)
{
    if (due(fd, "write_eio"))
        return failed(EIO);
    if (due(fd, "full"))
        return failed(ENOSPC);
    if (due(fd, "lost_write"))
        return (ssize_t)from->iov_len;
    if (due(fd, "short_write")) {
        struct iovec less = half(from);
        return REAL(pwritev64v2)(fd, &less, 1, at, flags);
    }
    if (due(fd, "slow"))
        wait_ms(number("DISK_FAULT_MS"));
    return REAL(pwritev64v2)(fd, from, count, at, flags);
}

/* Which of them a Python calls depends on how it was built; compiled code calls the plain ones. */
ssize_t preadv64v2(int fd, const struct iovec *to, int count, off64_t at, int flags)
{
    return read_at(fd, to, count, at, flags);
}

ssize_t preadv64(int fd, const struct iovec *to, int count, off64_t at)
{
    return read_at(fd, to, count, at, 0);
}

ssize_t pread(int fd, void *to, size_t count, off_t at)
{
    struct iovec whole = {to, count};
    return read_at(fd, &whole, 1, at, 0);
}

ssize_t pwritev64v2(int fd, const struct iovec *from, int count, off64_t at, int flags)
{
    return write_at(fd, from, count, at, flags);
}

ssize_t pwritev64(int fd, const struct iovec *from, int count, off64_t at)
{
    return write_at(fd, from, count, at, 0);
}

int fdatasync(int fd)
{
    return due(fd, "sync_eio") ? failed(EIO) : REAL(fdatasync)(fd);
}

int fsync(int fd)
{
    return due(fd, "sync_eio") ? failed(EIO) : REAL(fsync)(fd);
}

/* Of a whole file system, by a run folder of it. */
int syncfs(int fd)
{
    char path[4096];
    if (is("syncfs_eio") && whose(fd, path) && strstr(path, "/.clustergauge-"))
        return failed(EIO);
    return REAL(syncfs)(fd);
}

int posix_fallocate64(int fd, off64_t at, off64_t length)
{
    return due(fd, "allocate_full") ? ENOSPC : REAL(posix_fallocate64)(fd, at, length);
}

int posix_fadvise64(int fd, off64_t at, off64_t length, int advice)
{
    return due(fd, "cached") ? 0 : REAL(posix_fadvise64)(fd, at, length, advice);
}

static int opened(const char *path, int flags)
{
    if (!named(path))
        return 1;
    if (flags & O_CREAT)
        atomic_store(&calls, 0);
    return !(flags & O_DIRECT && (is("cached") || is("no_direct")));
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags) ? REAL(open64)(path, flags, mode) : failed(EINVAL);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags) ? REAL(open)(path, flags, mode) : failed(EINVAL);
}
