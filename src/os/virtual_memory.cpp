#include "os/virtual_memory.hpp"

#include "os/guarded.hpp"
#include "os/other_tools.hpp"
#include "os/quiet.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>

// Values of newer kernels that the C library's header may not know yet.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef MADV_GUARD_REMOVE
#define MADV_GUARD_REMOVE 103
#endif

namespace pmr_debug::os {

namespace {

// mprotect guards cost up to two mappings each. The kernel allows 65 530 by default, and a process at the limit cannot
// even unmap, so guards stop at a quarter of it.
constexpr int protect_budget = 16'000;

/// What EINVAL means: that the kernel does not know the call, or, if it is known to know it, that this range is
/// special.
enum class knows : std::uint8_t { untried, yes, no };

struct system_facts {
    std::atomic<std::size_t> page_bytes{0};
    std::atomic<int> protect_guards{0};
    std::atomic<bool> can_advise_many{true};
    std::atomic<guard_tier> best_tier{guard_tier::marker};
    std::atomic<knows> moving{knows::untried};
    // Of guards: whether they were seen to work.
    std::atomic<knows> markers{knows::untried};
    std::atomic<knows> protecting{knows::untried};
    std::atomic<knows> discarding{knows::untried};
    // For tests: the system says yes to every guard, and installs none, as some emulators do.
    std::atomic<bool> pretending{false};
};
constinit guarded<system_facts> facts;
const guard_pages facts_guards(facts);
constexpr auto& protect_guards = facts->protect_guards;
constexpr auto& can_advise_many = facts->can_advise_many;
constexpr auto& best_tier = facts->best_tier;
constexpr auto& moving = facts->moving;
constexpr auto& markers = facts->markers;
constexpr auto& protecting = facts->protecting;
constexpr auto& discarding = facts->discarding;
constexpr auto& pretending = facts->pretending;

void note(std::atomic<knows>& what, knows now) noexcept {
    if (what.load(std::memory_order_relaxed) != now) {
        what.store(now, std::memory_order_relaxed);
    }
}

// Without MAP_NORESERVE, so that the system refuses what it will never have, as it does for malloc; what is mapped
// without permissions is not charged. All mappings are of one sort, so neighbours become one.
constexpr int private_pages = MAP_PRIVATE | MAP_ANONYMOUS;

void* map_with(std::size_t bytes, std::size_t alignment, int protection) noexcept {
    const errno_keeper keep;
    constexpr int flags = private_pages;
    const std::size_t page = page_size();
    if (bytes > SIZE_MAX - page) {
        return nullptr;
    }
    bytes = round_up(bytes, page);
    if (alignment <= page) {
        void* p = ::mmap(nullptr, bytes, protection, flags, -1, 0);
        return p == MAP_FAILED ? nullptr : p;
    }
    if (bytes > SIZE_MAX - alignment) {
        return nullptr;
    }
    // Map enough to hold an aligned block, then give the ends back.
    const std::size_t span = bytes + alignment - page;
    void* p = ::mmap(nullptr, span, protection, flags, -1, 0);
    if (p == MAP_FAILED) {
        return nullptr;
    }
    auto* const raw = static_cast<unsigned char*>(p);
    const auto address = reinterpret_cast<std::uintptr_t>(raw);
    const std::size_t head = round_up(address, alignment) - address;
    const std::size_t tail = span - head - bytes;
    // A refused trim wastes address space and nothing else.
    if (head != 0) {
        ::munmap(raw, head);
    }
    if (tail != 0) {
        ::munmap(raw + head + bytes, tail);
    }
    return raw + head;
}

/// Whether the call that just failed was refused by a filter of system calls, which may let another one through.
bool filtered() noexcept {
    return errno == EPERM || errno == EACCES || errno == ENOSYS;
}

/// Effects: fresh pages in the place of those that are there, whose contents are lost.
bool map_over(void* p, std::size_t bytes, int permissions) noexcept {
    return ::mmap(p, bytes, permissions, private_pages | MAP_FIXED, -1, 0) != MAP_FAILED;
}

/// Effects: takes the permissions away. Contents may be lost. Returns: false if the system refuses.
bool shut(void* p, std::size_t bytes) noexcept {
    return ::mprotect(p, bytes, PROT_NONE) == 0 || (filtered() && map_over(p, bytes, PROT_NONE));
}

/// Effects: gives one advice about many ranges. Returns: how many were taken, counted from the first.
std::size_t advise_many(const page_range* ranges, std::size_t count, int advice) noexcept {
    const errno_keeper keep;
    constexpr int this_process = -10'000;  // PIDFD_SELF: no descriptor that a child would inherit (Linux 6.15)
    constexpr std::size_t most = 64;
    std::size_t done = 0;
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 36)
    while (done != count && can_advise_many.load(std::memory_order_relaxed)) {
        iovec some[most];
        const std::size_t n = count - done < most ? count - done : most;
        for (std::size_t i = 0; i < n; ++i) {
            some[i] = {.iov_base = ranges[done + i].start, .iov_len = ranges[done + i].bytes};
        }
        const ssize_t taken = ::process_madvise(this_process, some, n, advice, 0);
        if (taken < 0) {
            // An older kernel, or a filter: do not ask again.
            if (errno == EBADF || errno == ENOSYS || errno == EPERM) {
                can_advise_many.store(false, std::memory_order_relaxed);
            }
            break;
        }
        auto left = static_cast<std::size_t>(taken);
        for (std::size_t i = 0; i < n; ++i) {
            if (some[i].iov_len > left) {
                return done;
            }
            left -= some[i].iov_len;
            ++done;
        }
    }
#endif
    return done;
}

}  // namespace

std::size_t page_size() noexcept {
    std::size_t size = facts->page_bytes.load(std::memory_order_relaxed);
    if (size == 0) [[unlikely]] {
        size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
        facts->page_bytes.store(size, std::memory_order_relaxed);
    }
    return size;
}

void detail::make_unwritable(void* page, std::size_t bytes) noexcept {
    if (bytes % page_size() == 0) {
        (void)::mprotect(page, bytes, PROT_READ);
    }
}

void* map(std::size_t bytes, std::size_t alignment) noexcept {
    return map_with(bytes, alignment, PROT_READ | PROT_WRITE);
}

void* reserve(std::size_t bytes, std::size_t alignment) noexcept {
    const errno_keeper keep;
    void* const p = map_with(bytes, alignment, PROT_NONE);
    if (p != nullptr) {
        // After mlockall(MCL_FUTURE) all of it would count as locked, against a limit that was set for what is in use.
        (void)::munlock(p, bytes);
    }
    return p;
}

std::size_t address_limit() noexcept {
    rlimit limit{};
    if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= SIZE_MAX) {
        return SIZE_MAX;
    }
    return static_cast<std::size_t>(limit.rlim_cur);
}

std::size_t share_of_addresses(std::size_t wanted, std::size_t parts) noexcept {
    constexpr std::size_t least = std::size_t{1} << 19;
    const std::size_t share = address_limit() / parts;
    const std::size_t most = share > least ? std::bit_floor(share) : least;
    return wanted < most ? wanted : most;
}

bool commit(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return ::mprotect(p, bytes, PROT_READ | PROT_WRITE) == 0 ||
           (filtered() && map_over(p, bytes, PROT_READ | PROT_WRITE));
}

bool show(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return ::mprotect(p, bytes, PROT_READ) == 0 || (filtered() && map_over(p, bytes, PROT_READ));
}

bool protect_read(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return ::mprotect(p, bytes, PROT_READ) == 0;
}

bool protect_read_write(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return ::mprotect(p, bytes, PROT_READ | PROT_WRITE) == 0;
}

bool unmap(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return ::munmap(p, round_up(bytes, page_size())) == 0;
}

namespace {

bool map_at_with(void* p, std::size_t bytes, int protection) noexcept {
#ifdef MAP_FIXED_NOREPLACE
    constexpr int fixed = MAP_FIXED_NOREPLACE;
#else
    constexpr int fixed = 0;  // a hint only; checked below
#endif
    void* const got = ::mmap(p, bytes, protection, private_pages | fixed, -1, 0);
    if (got == MAP_FAILED) {
        return false;
    }
    if (got != p) {  // a kernel before 4.17 takes the address as a hint
        ::munmap(got, bytes);
        errno = EEXIST;
        return false;
    }
    return true;
}

/// Whether guard markers are to be used where the kernel knows them.
bool markers_wanted() noexcept {
    return best_tier.load(std::memory_order_relaxed) == guard_tier::marker && !under_leak_sanitizer();
}

/// Whether the system finds the byte at \p p out of reach: what a guard is for, and cannot be known from what the call
/// that installed it returned. No cancellation point, no signal.
bool out_of_reach(const void* p) noexcept {
    const unseen_by_valgrind quiet(under_valgrind());  // it would take this for an error
    int ends[2];
    if (::syscall(SYS_pipe2, ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        // Without descriptors: this call reads the set before it looks at what to do with it, which is nothing.
        return ::syscall(SYS_rt_sigprocmask, -1, p, nullptr, 8) != 0 && errno == EFAULT;
    }
    const bool fault = ::syscall(SYS_write, ends[1], p, 1) == -1 && errno == EFAULT;
    ::syscall(SYS_close, ends[0]);
    ::syscall(SYS_close, ends[1]);
    return fault;
}

/// Whether guards of a kind work here, asked of a page by itself. Some emulators, and some kernels, say yes to calls
/// that they do not know.
template <class Guard>
knows try_guard(Guard guard) noexcept {
    const std::size_t page = page_size();
    void* const p = map(page, page);
    if (p == nullptr) {
        return knows::untried;
    }
    *static_cast<volatile unsigned char*>(p) = 1;
    const bool done = guard(p, page);
    const int error = errno;
    knows result = knows::untried;
    if (!done) {
        result = error == EINVAL || error == ENOSYS || error == EPERM || error == EACCES ? knows::no : knows::untried;
    } else {
        result = !pretending.load(std::memory_order_relaxed) && out_of_reach(p) ? knows::yes : knows::no;
    }
    ::munmap(p, page);
    return result;
}

/// Returns: whether guards of a kind were seen to work, which is found out at first use. One that could not be tried is
/// not believed.
template <class Guard>
bool works(std::atomic<knows>& known, Guard guard) noexcept {
    knows k = known.load(std::memory_order_relaxed);
    if (k == knows::untried) {
        const int error = errno;
        k = try_guard(guard);
        note(known, k);
        errno = error;
    }
    return k == knows::yes;
}

bool markers_work() noexcept {
    return works(markers, [](void* p, std::size_t n) noexcept { return ::madvise(p, n, MADV_GUARD_INSTALL) == 0; });
}
bool protection_works() noexcept {
    return works(protecting, shut);
}

/// Effects: gives contents back by madvise. Returns: false if that is refused.
bool advise_away(void* p, std::size_t bytes) noexcept {
    if (discarding.load(std::memory_order_relaxed) == knows::no) {
        return false;
    }
    // Locked pages: newer kernels take them by the other name.
    return ::madvise(p, bytes, MADV_DONTNEED) == 0 ||
           (errno == EINVAL && ::madvise(p, bytes, MADV_DONTNEED_LOCKED) == 0);
}

}  // namespace

bool map_at(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return map_at_with(p, bytes, PROT_READ | PROT_WRITE);
}

spot reserve_at(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    if (map_at_with(p, bytes, PROT_NONE)) {
        return spot::reserved;
    }
    return errno == EEXIST ? spot::taken : spot::refused;
}

void* unused_addresses(std::size_t bytes, std::size_t alignment) noexcept {
    // The system places mappings next to others. Far below the last one is nothing, and nothing comes there by itself
    // while a limit allows less than the distance. Ranges of different callers are apart.
    static constinit std::atomic<std::uintptr_t> turn{0};
    constexpr std::uintptr_t apart = std::uintptr_t{1} << 37;
    constexpr std::uintptr_t turns = 256;
    void* const here = map_with(page_size(), page_size(), PROT_NONE);
    if (here == nullptr) {
        return nullptr;
    }
    ::munmap(here, page_size());
    const auto top = reinterpret_cast<std::uintptr_t>(here);
    const std::uintptr_t distance = os::round_up(bytes, apart) + apart;
    for (int tries = 0; tries < 4; ++tries) {
        const std::uintptr_t below = (turn.fetch_add(1, std::memory_order_relaxed) % turns + 1) * distance;
        if (below >= top / 2) {
            turn.store(0, std::memory_order_relaxed);
            continue;
        }
        const std::uintptr_t base = (top - below) & ~(std::uintptr_t{alignment} - 1);
        if (reserve_at(reinterpret_cast<void*>(base), page_size()) == spot::reserved) {
            ::munmap(reinterpret_cast<void*>(base), page_size());
            return reinterpret_cast<void*>(base);
        }
    }
    return nullptr;
}

bool discard_in_place(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    if (discarding.load(std::memory_order_relaxed) == knows::untried) {
        // An emulator may say yes and do nothing.
        const std::size_t page = page_size();
        if (auto* const probe = static_cast<volatile unsigned char*>(map(page, page)); probe != nullptr) {
            *probe = 1;
            if (advise_away(const_cast<unsigned char*>(probe), page)) {
                note(discarding, *probe == 0 ? knows::yes : knows::no);
            }
            ::munmap(const_cast<unsigned char*>(probe), page);
        }
    }
    return advise_away(p, bytes);
}

bool discard(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return discard_in_place(p, bytes) || ((reinterpret_cast<std::uintptr_t>(p) | bytes) % page_size() == 0 &&
                                          map_over(p, bytes, PROT_READ | PROT_WRITE));
}

bool populate(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return ::madvise(p, bytes, MADV_POPULATE_WRITE) == 0;
}

void prefer_huge_pages(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    (void)::madvise(p, bytes, MADV_HUGEPAGE);
}

guard_tier install_guard(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    if (markers_wanted() && markers_work() && ::madvise(p, bytes, MADV_GUARD_INSTALL) == 0) {
        return guard_tier::marker;  // refused for what is locked in memory
    }
    if (best_tier.load(std::memory_order_relaxed) != guard_tier::none && protection_works()) {
        if (protect_guards.fetch_add(1, std::memory_order_relaxed) < protect_budget && shut(p, bytes)) {
            // If the contents cannot be given back like this, fresh pages without permissions take their place; if that
            // is refused as well, the memory stays, and the guard holds all the same.
            if (!discard_in_place(p, bytes)) {
                (void)seal(p, bytes);
            }
            return guard_tier::protect;
        }
        protect_guards.fetch_sub(1, std::memory_order_relaxed);
    }
    return guard_tier::none;
}

bool guards_work() noexcept {
    return best_tier.load(std::memory_order_relaxed) != guard_tier::none &&
           ((markers_wanted() && markers_work()) || protection_works());
}

markings install_markers(const page_range* ranges, std::size_t count, bool used) noexcept {
    // Valgrind does not know the call, and says so on every one.
    if (!markers_wanted() || under_valgrind() || !markers_work()) {
        return {};
    }
    const std::size_t emptied = used ? advise_many(ranges, count, MADV_DONTNEED) : 0;
    const std::size_t guarded = advise_many(ranges, count, MADV_GUARD_INSTALL);
    return {guarded, std::max(guarded, emptied)};
}

bool remove_guard(void* p, std::size_t bytes, guard_tier tier) noexcept {
    const errno_keeper keep;
    switch (tier) {
        case guard_tier::marker:
            return ::madvise(p, bytes, MADV_GUARD_REMOVE) == 0 ||
                   (filtered() && map_over(p, bytes, PROT_READ | PROT_WRITE));
        case guard_tier::protect:
            if (!commit(p, bytes)) {
                return false;
            }
            protect_guards.fetch_sub(1, std::memory_order_relaxed);
            return true;
        case guard_tier::moved: return commit(p, bytes);
        case guard_tier::none: break;
    }
    return true;
}

bool seal(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return map_over(p, bytes, PROT_NONE);
}

move_result move_pages(void* from, void* to, std::size_t bytes) noexcept {
    const errno_keeper keep;
    if (moving.load(std::memory_order_relaxed) == knows::no) {
        return {};
    }
    // Without MREMAP_DONTUNMAP there would be a moment in which another thread's mapping could take the old place.
    if (::mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == MAP_FAILED) {
        if (errno == EINVAL && moving.load(std::memory_order_relaxed) == knows::untried) {  // a kernel before 5.7
            note(moving, knows::no);
        }
        // The kernel may have unmapped `to` before it failed; if it did not, this changes nothing. Without permissions
        // it takes none of a limit on data. A kernel that refuses this as well has no memory for itself.
        static_cast<void>(map_at(to, bytes) || map_at_with(to, bytes, PROT_NONE));
        return {};
    }
    note(moving, knows::yes);
    // If it is not sealed the old place is mapped and empty: a late access would read zeros. Guards are second best.
    return {.moved = true, .trap = seal(from, bytes) ? guard_tier::moved : install_guard(from, bytes)};
}

void forget_protect_guards(int count) noexcept {
    protect_guards.fetch_sub(count, std::memory_order_relaxed);
}

void force_guard_tier(guard_tier best) noexcept {
    best_tier.store(best, std::memory_order_relaxed);
}

void pretend_guards(bool on) noexcept {
    pretending.store(on, std::memory_order_relaxed);
    markers.store(knows::untried, std::memory_order_relaxed);
    protecting.store(knows::untried, std::memory_order_relaxed);
}

std::size_t resident(const void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    const std::size_t page = page_size();
    const auto* at = static_cast<const unsigned char*>(p);
    unsigned char in_memory[1024];
    std::size_t sum = 0;
    while (bytes != 0) {
        const std::size_t part = bytes < sizeof in_memory * page ? bytes : sizeof in_memory * page;
        // mincore takes a non-const pointer but only looks.
        if (::mincore(const_cast<unsigned char*>(at), part, in_memory) != 0) {
            return sum;
        }
        for (std::size_t i = 0; i < part / page; ++i) {
            sum += (in_memory[i] & 1U) != 0 ? page : 0;
        }
        at += part;
        bytes -= part;
    }
    return sum;
}

std::size_t peak_resident() noexcept {
    const errno_keeper keep;
    rusage usage{};
    return ::getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<std::size_t>(usage.ru_maxrss) * 1024 : 0;
}

}  // namespace pmr_debug::os
