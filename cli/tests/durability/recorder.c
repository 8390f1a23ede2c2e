/*
 * Preloaded into a control plane, it records everything that is done to the files of one directory, in order:
 * what is written where, lengths, syncs, and names that come, go and change. It answers what the kernel answers.
 *
 * One lock is held over an operation and its record, so that the order of the records is the order of the
 * operations. What it does not know of is noticed: the records, played again, must be the directory (recording.rs).
 *
 * A record: kind, length of the path, of a second path, and of the data, a number (the offset, or the length of
 * the file), the path below the directory, the second path, the data. Numbers are little-endian.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PATH_ROOM (2 * PATH_MAX)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int records = -1;
static char root[PATH_MAX];
static size_t root_length;

static void give_up(const char *what) {
    fprintf(stderr, "recorder: %s: %s\n", what, strerror(errno));
    _exit(99);
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("FOREBAY_TEST_RECORD_DIR"), *into = getenv("FOREBAY_TEST_RECORD_INTO");
    if (!dir || !into) return;
    root_length = (size_t)snprintf(root, sizeof root, "%s/", dir);
    records = (int)syscall(SYS_openat, AT_FDCWD, into, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (records < 0) give_up(into);
}

/* The path below the directory; nothing if it is elsewhere. The directory itself is "". */
static const char *below(const char *path) {
    if (records < 0) return NULL;
    if (strncmp(path, root, root_length) == 0) return path + root_length;
    if (strncmp(path, root, root_length - 1) == 0 && !path[root_length - 1]) return "";
    return NULL;
}

static int link_of(const char *link, char *path) {
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

/* The path of an open file. */
static const char *of_file(int file, char *path) {
    char link[64];
    int before = errno;
    if (records < 0) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    int known = link_of(link, path);
    errno = before;
    return known ? below(path) : NULL;
}

/* A path that may be relative, made absolute. */
static const char *of_path(int dir, const char *path, char *room) {
    int before = errno;
    if (records < 0) return NULL;
    if (path[0] == '/') return below(path);
    char link[64];
    if (dir == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    int known = link_of(link, room);
    errno = before;
    if (!known) return NULL;
    strcat(room, "/");
    strncat(room, path, PATH_MAX - 1);
    return below(room);
}

static void put(char *head, size_t *at, uint64_t number) {
    for (int i = 0; i < 8; i++) head[(*at)++] = (char)(number >> (8 * i));
}

/* Writes one record. */
static void record(char kind, const char *path, const char *second, uint64_t number, const void *data, size_t length) {
    char head[33];
    size_t at = 0;
    int before = errno;
    head[at++] = kind;
    put(head, &at, strlen(path));
    put(head, &at, strlen(second));
    put(head, &at, length);
    put(head, &at, number);
    struct iovec parts[4] = {
        {head, at}, {(void *)path, strlen(path)}, {(void *)second, strlen(second)}, {(void *)data, length}};
    size_t whole = at + parts[1].iov_len + parts[2].iov_len + length;
    if (syscall(SYS_writev, records, parts, 4) != (ssize_t)whole) give_up("a record cannot be written");
    errno = before;
}

static int opened(int dir, const char *path, int flags, mode_t mode) {
    char room[PATH_ROOM];
    const char *own = of_path(dir, path, room);
    if (!own || !(flags & (O_CREAT | O_TRUNC))) return (int)syscall(SYS_openat, dir, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat found;
    int before = errno;
    int there = fstatat(dir, path, &found, 0) == 0;
    errno = before;
    int file = (int)syscall(SYS_openat, dir, path, flags, mode);
    if (file >= 0 && !there) record('C', own, "", 0, "", 0);
    if (file >= 0 && there && (flags & O_TRUNC)) record('T', own, "", 0, "", 0);
    pthread_mutex_unlock(&lock);
    return file;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) return opened(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) return opened(dir, path, flags, mode); }

static ssize_t written_at(int file, const void *data, size_t length, off_t offset) {
    char room[PATH_ROOM];
    const char *own = of_file(file, room);
    if (!own) return syscall(SYS_pwrite64, file, data, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t written = syscall(SYS_pwrite64, file, data, length, offset);
    if (written > 0) record('W', own, "", (uint64_t)offset, data, (size_t)written);
    pthread_mutex_unlock(&lock);
    return written;
}

ssize_t pwrite(int file, const void *data, size_t length, off_t offset) { return written_at(file, data, length, offset); }
ssize_t pwrite64(int file, const void *data, size_t length, off_t offset) { return written_at(file, data, length, offset); }

ssize_t write(int file, const void *data, size_t length) {
    char room[PATH_ROOM];
    const char *own = of_file(file, room);
    if (!own) return syscall(SYS_write, file, data, length);
    pthread_mutex_lock(&lock);
    ssize_t written = syscall(SYS_write, file, data, length);
    off_t end = (off_t)syscall(SYS_lseek, file, 0, SEEK_CUR);
    if (written > 0) record('W', own, "", (uint64_t)(end - written), data, (size_t)written);
    pthread_mutex_unlock(&lock);
    return written;
}

/* Part by part: to write less than asked for is allowed. */
ssize_t writev(int file, const struct iovec *parts, int count) {
    char room[PATH_ROOM];
    if (!of_file(file, room)) return syscall(SYS_writev, file, parts, count);
    for (int part = 0; part < count; part++)
        if (parts[part].iov_len > 0) return write(file, parts[part].iov_base, parts[part].iov_len);
    return 0;
}

static int cut(int file, off_t length) {
    char room[PATH_ROOM];
    const char *own = of_file(file, room);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_ftruncate, file, length);
    if (own && result == 0) record('T', own, "", (uint64_t)length, "", 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int file, off_t length) { return cut(file, length); }
int ftruncate64(int file, off_t length) { return cut(file, length); }

/* `sync_file_range` is let through and not recorded: it makes nothing durable. */
static int synced(long call, int file) {
    char room[PATH_ROOM];
    const char *own = of_file(file, room);
    if (!own) return (int)syscall(call, file);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(call, file);
    if (result == 0) record('S', own, "", 0, "", 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int file) { return synced(SYS_fsync, file); }
int fdatasync(int file) { return synced(SYS_fdatasync, file); }

int rename(const char *from, const char *to) {
    char room[PATH_ROOM], second[PATH_ROOM];
    const char *own = of_path(AT_FDCWD, from, room), *new = of_path(AT_FDCWD, to, second);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (result == 0 && own && new) record('R', own, new, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return result;
}

static int unlinked(int dir, const char *path, int flags) {
    char room[PATH_ROOM];
    const char *own = of_path(dir, path, room);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_unlinkat, dir, path, flags);
    if (result == 0 && own) record('U', own, "", 0, "", 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dir, const char *path, int flags) { return unlinked(dir, path, flags); }

int mkdir(const char *path, mode_t mode) {
    char room[PATH_ROOM];
    const char *own = of_path(AT_FDCWD, path, room);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (result == 0 && own) record('D', own, "", 0, "", 0);
    pthread_mutex_unlock(&lock);
    return result;
}
