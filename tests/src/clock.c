/*
 * clock FILE PROGRAM ARGUMENT...: runs a program by a wall clock that is wrong, by as many seconds as FILE holds: a 64-bit
 * number as this machine writes it, looked at with each reading, so that a clock can be set while the program runs.
 *
 * Fender is one static binary, so nothing can be preloaded into it, and time namespaces leave the wall clock alone. What is
 * left is the kernel's own answer: a seccomp filter hands each reading of the wall clock to a companion, which reads the true
 * clock, adds what FILE says at that moment, and answers in the kernel's place. The program is what people run, unchanged;
 * monotonic clocks and timers are the machine's. Before the program's first instruction the companion hides the vDSO, which
 * would answer without asking the kernel; then it traces it no more.
 *
 * What the program starts by executing another file would see the vDSO again, and the times of files are the kernel's: it is for
 * programs that are one process. The companion ends with it.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#else
#error "no filter for this machine"
#endif

#define WHOLE(size, of) ((ssize_t)(size) == (of))

static void fail(const char *what) {
    fprintf(stderr, "clock: %s: %s\n", what, strerror(errno));
    exit(70);
}

/* Readings of the wall clock go to the companion; everything else to the kernel. */
static int listener(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 0, 7),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_gettimeofday, 6, 0),
#ifdef SYS_time
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_time, 5, 0),
#else
        BPF_JUMP(BPF_JMP | BPF_JA, 0, 0, 0),
#endif
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLOCK_REALTIME, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLOCK_REALTIME_COARSE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    };
    struct sock_fprog program = { sizeof code / sizeof *code, code };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) fail("give up privileges to come");
    int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (fd < 0) fail("filter the readings of the clock");
    return fd;
}

static void send_descriptor(int to, int fd) {
    char byte = 0;
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof fd)]; } control = { 0 };
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(to, &message, 0) != 1) fail("hand over the listener");
}

static int receive_descriptor(int from) {
    char byte;
    int fd = -1;
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof fd)]; } control = { 0 };
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
    if (recvmsg(from, &message, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&message)) fail("take the listener");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static uint64_t word(int memory, uint64_t at) {
    uint64_t value;
    if (!WHOLE(sizeof value, pread(memory, &value, sizeof value, at))) fail("read the program's stack");
    return value;
}

/* On the stack of a program that is about to begin lie its arguments, its environment and the auxiliary vector. */
static void hide_vdso(int memory, uint64_t at) {
    const uint64_t step = sizeof at, ignored = AT_IGNORE;
    at += step * (word(memory, at) + 2);
    while (word(memory, at)) at += step;
    for (at += step; word(memory, at) != AT_NULL; at += 2 * step)
        if (word(memory, at) == AT_SYSINFO_EHDR && !WHOLE(step, pwrite(memory, &ignored, step, at))) fail("hide the vDSO");
}

/* Until the program is there: its memory, without a vDSO. */
static int begun(pid_t program) {
    int status;
    if (waitpid(program, &status, __WALL) != program) fail("wait for the program");
    if (status >> 8 != (SIGTRAP | PTRACE_EVENT_EXEC << 8)) {
        fprintf(stderr, "clock: the program did not begin: wait status %#x\n", status);
        exit(70);
    }
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, program, sizeof info, &info) <= 0) fail("look at the program");
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", program);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    if (memory < 0) fail(path);
    hide_vdso(memory, info.stack_pointer);
    if (ptrace(PTRACE_DETACH, program, 0, 0)) fail("let the program go");
    return memory;
}

static int64_t wrong_by(int file) {
    int64_t seconds;
    if (!WHOLE(sizeof seconds, pread(file, &seconds, sizeof seconds, 0))) fail("read by how much the clock is wrong");
    return seconds;
}

/* Answers one reading; whoever asked may have died meanwhile. */
static void answer(int notices, int memory, int file) {
    struct seccomp_notif asked = { 0 };
    if (ioctl(notices, SECCOMP_IOCTL_NOTIF_RECV, &asked)) {
        if (errno == EINTR || errno == ENOENT) return;
        fail("hear a question");
    }
    struct seccomp_notif_resp answer = { .id = asked.id };
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec += wrong_by(file);
    ssize_t written = 0, size = 0;
    if (asked.data.nr == SYS_clock_gettime) {
        size = sizeof now;
        written = pwrite(memory, &now, size, asked.data.args[1]);
    } else if (asked.data.nr == SYS_gettimeofday) {
        struct timeval coarse = { now.tv_sec, now.tv_nsec / 1000 };
        size = asked.data.args[0] ? sizeof coarse : 0;
        written = size ? pwrite(memory, &coarse, size, asked.data.args[0]) : 0;
    } else {
        answer.val = now.tv_sec;
        size = asked.data.args[0] ? sizeof now.tv_sec : 0;
        written = size ? pwrite(memory, &now.tv_sec, size, asked.data.args[0]) : 0;
    }
    if (written != size) answer.error = -EFAULT, answer.val = 0;
    if (ioctl(notices, SECCOMP_IOCTL_NOTIF_SEND, &answer) && errno != ENOENT) fail("answer");
}

static void accompany(pid_t program, int line, int file) {
    int notices = receive_descriptor(line);
    if (ptrace(PTRACE_SEIZE, program, 0, PTRACE_O_TRACEEXEC)) fail("meet the program");
    if (write(line, "", 1) != 1) fail("say that it may begin");
    int memory = begun(program), life = syscall(SYS_pidfd_open, program, 0);
    if (life < 0) fail("watch the program's life");
    struct pollfd look[] = { { .fd = notices, .events = POLLIN }, { .fd = life, .events = POLLIN } };
    for (;;) {
        if (poll(look, 2, -1) < 0) fail("wait for questions");
        if (look[1].revents) exit(0);
        if (look[0].revents & POLLIN) answer(notices, memory, file);
    }
}

int main(int count, char **arguments) {
    if (count < 3) {
        fprintf(stderr, "usage: clock FILE PROGRAM ARGUMENT...\n");
        return 64;
    }
    int file = open(arguments[1], O_RDONLY | O_CLOEXEC), line[2];
    if (file < 0) fail(arguments[1]);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line)) fail("a line to the companion");
    pid_t program = getpid(), companion = fork();
    if (companion < 0) fail("fork");
    if (!companion) {
        close(line[0]);
        accompany(program, line[1], file);
    }
    close(line[1]);
    prctl(PR_SET_PTRACER, companion, 0, 0, 0);
    send_descriptor(line[0], listener());
    char byte;
    if (read(line[0], &byte, 1) != 1) fail("the companion is gone");
    execvp(arguments[2], arguments + 2);
    fail(arguments[2]);
}
