#include "os/output.hpp"

#include "os/quiet.hpp"

#include <fcntl.h>
#include <linux/time_types.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

namespace pmr_debug::os {

namespace {

constexpr int standard_output = 1;
constexpr int standard_error = 2;

constexpr std::int64_t longest_wait_ms = 10'000;

// Descriptors that took nothing for that long, a bit each: nobody seems to read. Numbers from 64 share bits.
constinit std::atomic<std::uint64_t> stuck{0};

// The kernel's set of signals, as its system calls have it: the C library's is larger.
using signal_bits = std::uint64_t;

constexpr signal_bits bit_of(int signal) noexcept {
    return signal_bits{1} << static_cast<unsigned>(signal - 1);
}

// Holds back the signals that a refused write sends to its thread.
class held_signals {
public:
    held_signals() noexcept {
        constexpr signal_bits both = bit_of(SIGPIPE) | bit_of(SIGXFSZ);
        held_ = ::syscall(SYS_rt_sigprocmask, SIG_BLOCK, &both, &before_, sizeof both) == 0;
        if (held_ && ::syscall(SYS_rt_sigpending, &pending_, sizeof pending_) != 0) {
            pending_ = both;
        }
    }
    held_signals(const held_signals&) = delete;
    held_signals& operator=(const held_signals&) = delete;
    ~held_signals() {
        if (held_) {
            ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before_, nullptr, sizeof before_);
        }
    }
    // A write just now sent \p signal. One that was waiting before is the program's.
    void take(int signal) const noexcept {
        const signal_bits one = bit_of(signal);
        if (!held_ || (pending_ & one) != 0) {
            return;
        }
        const __kernel_timespec at_once{};
        for (int tries = 0; tries < 10; ++tries) {
            if (::syscall(SYS_rt_sigtimedwait, &one, nullptr, &at_once, sizeof one) >= 0 || errno != EINTR) {
                return;
            }
        }
    }

private:
    signal_bits before_ = 0;
    signal_bits pending_ = 0;
    bool held_ = false;
};

std::int64_t now_ms() noexcept {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<std::int64_t>(t.tv_sec) * 1000 + t.tv_nsec / 1'000'000;
}

// Waits for room; without a descriptor it only sleeps.
void wait_for(pollfd* room, std::int64_t ms) noexcept {
    __kernel_timespec left{.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1'000'000};
    ::syscall(SYS_ppoll, room, room != nullptr ? 1 : 0, &left, nullptr, std::size_t{0});
}

std::uint64_t write_out(int descriptor, const char* text, std::uint64_t bytes) noexcept {
    const held_signals held;
    const std::uint64_t mine = std::uint64_t{1} << (static_cast<unsigned>(descriptor) % 64);
    std::int64_t until = -1;
    std::uint64_t done = 0;
    while (done != bytes) {
        const long n = ::syscall(SYS_write, descriptor, text + done, bytes - done);
        if (n > 0) {
            done += static_cast<std::uint64_t>(n);
            if ((stuck.load(std::memory_order_relaxed) & mine) != 0) {
                stuck.fetch_and(~mine, std::memory_order_relaxed);
            }
            continue;
        }
        if (n == 0) {
            break;
        }
        const int why = errno;
        if (why == EINTR) {
            continue;
        }
        if (why == EPIPE) {
            held.take(SIGPIPE);
        } else if (why == EFBIG) {
            held.take(SIGXFSZ);
        }
        if (why != EAGAIN || (stuck.load(std::memory_order_relaxed) & mine) != 0) {
            break;
        }
        const std::int64_t now = now_ms();
        if (until < 0) {
            until = now + longest_wait_ms;
        }
        if (now >= until) {
            stuck.fetch_or(mine, std::memory_order_relaxed);
            break;
        }
        pollfd room{.fd = descriptor, .events = POLLOUT, .revents = 0};
        wait_for(&room, until - now);
        if (room.revents != 0) {
            wait_for(nullptr, 1);  // there is room, but perhaps not enough for a piece that is written as one
        }
    }
    return done;
}

open_file identity(const struct stat& s) noexcept {
    return {.device = s.st_dev, .inode = s.st_ino, .known = true};
}

struct first_standard_error {
    open_file file;
    bool worthless = false;  // the null device: that another descriptor is open to it, too, says nothing
};
constinit first_standard_error at_first{};
constinit std::atomic<bool> noted{false};

// As early as can be: before the program's own constructors.
[[gnu::constructor(101)]] void note_standard_error() noexcept {
    if (noted.load(std::memory_order_acquire)) {
        return;
    }
    const errno_keeper keep;
    struct stat s {};
    if (::fstat(standard_error, &s) == 0) {
        at_first.file = identity(s);
        at_first.worthless = S_ISCHR(s.st_mode) && s.st_rdev == makedev(1, 3);
    }
    noted.store(true, std::memory_order_release);
}

bool is_kept_elsewhere(const open_file& file) noexcept {
    constexpr int first = 3;
    constexpr int last = 255;
    for (int d = first; d <= last; ++d) {
        if (file_behind(d) == file) {
            return true;
        }
    }
    return false;
}

bool appends(int descriptor) noexcept {
    const int flags = ::fcntl(descriptor, F_GETFL);
    return flags >= 0 && (flags & O_APPEND) != 0;
}

bool is_open_to(int descriptor, const open_file& opened) noexcept {
    if (descriptor == standard_error) {
        return goes_to_standard_error();
    }
    return !opened.known || file_behind(descriptor) == opened || appends(descriptor);
}

void write_to_terminal(const char* text, std::uint64_t bytes) noexcept {
    const auto terminal =
        static_cast<int>(::syscall(SYS_openat, AT_FDCWD, "/dev/tty", O_WRONLY | O_NOCTTY | O_CLOEXEC, 0));
    if (terminal >= 0) {
        write_out(terminal, text, bytes);
        ::syscall(SYS_close, terminal);
    }
}

}  // namespace

open_file file_behind(int descriptor) noexcept {
    const errno_keeper keep;
    struct stat s {};
    return ::fstat(descriptor, &s) == 0 ? identity(s) : open_file{};
}

bool goes_to_standard_error() noexcept {
    const errno_keeper keep;
    note_standard_error();
    struct stat s {};
    if (::fstat(standard_error, &s) != 0) {
        return false;
    }
    const open_file& first = at_first.file;
    if (identity(s) == first) {
        return true;
    }
    if (::fcntl(standard_error, F_GETFD) != 0) {
        return false;
    }
    if (S_ISCHR(s.st_mode) || (S_ISREG(s.st_mode) && appends(standard_error))) {
        return true;
    }
    return first.known && (S_ISFIFO(s.st_mode) || file_behind(standard_output) == identity(s) ||
                           (!at_first.worthless && is_kept_elsewhere(first)));
}

bool write_all(int descriptor, const char* text, std::uint64_t bytes, const open_file& opened,
               std::uint64_t* written) noexcept {
    const errno_keeper keep;
    std::uint64_t done = 0;
    if (is_open_to(descriptor, opened)) {
        done = write_out(descriptor, text, bytes);
    } else if (descriptor == standard_error) {
        write_to_terminal(text, bytes);
    }
    if (written != nullptr) {
        *written = done;
    }
    return done == bytes;
}

bool is_terminal(int descriptor) noexcept {
    const errno_keeper keep;
    return ::isatty(descriptor) == 1;
}

}  // namespace pmr_debug::os
