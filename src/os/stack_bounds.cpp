#include "os/stack_bounds.hpp"

#include "os/quiet.hpp"
#include "os/virtual_memory.hpp"

#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

namespace pmr_debug::os {

namespace {

// The kernel keeps at least this much address space below the main stack's top free of other mappings.
constexpr std::uintptr_t main_stack_gap = std::uintptr_t{128} << 20;
constexpr std::uintptr_t usual_stack = std::uintptr_t{8} << 20;

// The argument of ioctl PROCMAP_QUERY (Linux 6.11), which the C library's headers may not have yet.
struct procmap_query {
    std::uint64_t size;
    std::uint64_t query_flags;  // 0: the mapping must hold the address
    std::uint64_t query_addr;
    std::uint64_t vma_start;
    std::uint64_t vma_end;
    std::uint64_t vma_flags;
    std::uint64_t unused[7];
};
static_assert(sizeof(procmap_query) == 104);

// By syscall(), which unlike the functions of these calls is no point at which a thread can be cancelled.
int open_maps() noexcept {
    return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0));
}

void close_maps(int descriptor) noexcept {
    ::syscall(SYS_close, descriptor);
}

mapping query(int descriptor, std::uintptr_t address) noexcept {
    procmap_query q{};
    q.size = sizeof q;
    q.query_addr = address;
    if (::ioctl(descriptor, _IOWR('f', 17, procmap_query), &q) != 0) {
        return {};
    }
    constexpr std::uint64_t executable = 4;
    return {q.vma_start, q.vma_end, (q.vma_flags & executable) != 0};
}

mapping search(int descriptor, std::uintptr_t address) noexcept {
    // Lines are "start-end access rest", sorted by address, which are hexadecimal; access is "rwxp", or - in place of a
    // letter.
    enum class field { start, end, access, rest } at = field::start;
    mapping m;
    char text[4096];
    for (;;) {
        const ssize_t n = ::syscall(SYS_read, descriptor, text, sizeof text);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return {};
        }
        for (ssize_t i = 0; i < n; ++i) {
            const char c = text[i];
            if (c == '\n') {
                at = field::start;
                m = {};
            } else if (at == field::start && c == '-') {
                at = field::end;
            } else if (at == field::end && c == ' ') {
                at = field::access;
                if (m.low > address) {
                    return {};
                }
            } else if (at == field::access && c == ' ') {
                at = field::rest;
                if (address < m.high) {
                    return m;
                }
            } else if (at == field::access) {
                m.executable = m.executable || c == 'x';
            } else if (at != field::rest) {
                std::uintptr_t& value = at == field::start ? m.low : m.high;
                const unsigned digit = static_cast<unsigned>(c >= 'a' ? c - 'a' + 10 : c - '0');
                value = value * 16 + (digit & 15U);
            }
        }
    }
}

// Main thread. AT_RANDOM points to bytes that the kernel put on the stack above the first frame.
stack_bounds main_stack() noexcept {
    const std::uintptr_t high = ::getauxval(AT_RANDOM) & ~std::uintptr_t{15};
    if (high < main_stack_gap) {
        return {};
    }
    return {high - main_stack_gap, high};
}

// Other threads. The C libraries put the thread's control block, where the thread register points, at the high end of
// its stack, also if the program provided that stack.
stack_bounds thread_stack(std::uintptr_t frame) noexcept {
    const auto high = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
    const mapping m = find_mapping(high - 1);
    if (m.high != 0) {
        return {m.low, high};
    }
    // No /proc. A thread on its own stack is some way below its control block, in one piece.
    if (frame < high && high - frame < usual_stack) {
        return {high - usual_stack, high};
    }
    return {};
}

constexpr bool holds(const stack_bounds& b, std::uintptr_t address) noexcept {
    return b.low <= address && address < b.high;
}

}  // namespace

namespace detail {

constinit thread_local stack_bounds current_stack{};

stack_bounds find_stack(std::uintptr_t frame) noexcept {
    const errno_keeper keep;
    // The main thread's control block lies elsewhere, maybe beside a fiber's stack. The main thread of a forked child
    // that runs on the stack of the thread that forked is not recognised, unless that one was: its traces come slower.
    stack_bounds b = main_stack();
    if (!holds(b, frame) && ::syscall(SYS_gettid) != ::getpid()) {
        b = thread_stack(frame);
    }
    if (b.high == 0) {
        b = {1, 1};
    }
    current_stack = b;
    return b;
}

mapping query_mapping(std::uintptr_t address) noexcept {
    const errno_keeper keep;
    const int descriptor = open_maps();
    if (descriptor < 0) {
        return {};
    }
    const mapping m = query(descriptor, address);
    close_maps(descriptor);
    return m;
}

mapping read_mapping(std::uintptr_t address) noexcept {
    const errno_keeper keep;
    const int descriptor = open_maps();
    if (descriptor < 0) {
        return {};
    }
    const mapping m = search(descriptor, address);
    close_maps(descriptor);
    return m;
}

}  // namespace detail

bool can_read(std::uintptr_t address) noexcept {
    const errno_keeper keep;
    // The kernel reads the set of signals before it sees that there is no such way to change the mask.
    constexpr int no_such_way = -1;
    return ::syscall(SYS_rt_sigprocmask, no_such_way, address, nullptr, sizeof(std::uint64_t)) == 0 || errno != EFAULT;
}

mapping find_mapping(std::uintptr_t address) noexcept {
    // Asking for one mapping takes microseconds; reading all of them milliseconds where there are tens of thousands.
    const mapping m = detail::query_mapping(address);
    return m.high != 0 ? m : detail::read_mapping(address);
}

}  // namespace pmr_debug::os
