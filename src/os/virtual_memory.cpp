#include "os/virtual_memory.hpp"

#include "os/other_tools.hpp"
#include "os/quiet.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

// Values of newer kernels that the C library's header may not know yet.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
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

std::atomic<int> protect_guards{0};
std::atomic<bool> can_advise_many{true};
std::atomic<guard_tier> best_tier{guard_tier::marker};

/// What EINVAL means: that the kernel does not know the call, or, if it is known to know it, that this range is
/// special.
enum class knows : std::uint8_t { untried, yes, no };
std::atomic<knows> moving{knows::untried};
std::atomic<knows> markers{knows::untried};

void note(std::atomic<knows>& what, knows now) noexcept {
    if (what.load(std::memory_order_relaxed) != now) {
        what.store(now, std::memory_order_relaxed);
    }
}

void* map_with(std::size_t bytes, std::size_t alignment, int protection) noexcept {
    const errno_keeper keep;
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
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
    static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return size;
}

void* map(std::size_t bytes, std::size_t alignment) noexcept {
    return map_with(bytes, alignment, PROT_READ | PROT_WRITE);
}

void* reserve(std::size_t bytes, std::size_t alignment) noexcept {
    return map_with(bytes, alignment, PROT_NONE);
}

bool commit(void* p, std::size_t bytes) noexcept {
    return protect_read_write(p, bytes);
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
    const errno_keeper keep;
#ifdef MAP_FIXED_NOREPLACE
    constexpr int fixed = MAP_FIXED_NOREPLACE;
#else
    constexpr int fixed = 0;  // a hint only; checked below
#endif
    void* const got = ::mmap(p, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
    if (got == MAP_FAILED) {
        return false;
    }
    if (got != p) {  // a kernel before 4.17 takes the address as a hint
        ::munmap(got, bytes);
        return false;
    }
    return true;
}

/// Whether guard markers are to be used where the kernel knows them.
bool markers_wanted() noexcept {
    return best_tier.load(std::memory_order_relaxed) == guard_tier::marker && !under_leak_sanitizer();
}

/// Whether the kernel knows guard markers, asked for a page that nothing is special about.
bool knows_markers() noexcept {
    const errno_keeper keep;
    void* const p = map(page_size(), page_size());
    const bool known = p == nullptr || ::madvise(p, page_size(), MADV_GUARD_INSTALL) == 0 || errno != EINVAL;
    if (p != nullptr) {
        ::munmap(p, page_size());
    }
    return known;
}

}  // namespace

bool map_at(void* p, std::size_t bytes) noexcept {
    return map_at_with(p, bytes, PROT_READ | PROT_WRITE);
}

bool discard(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return ::madvise(p, bytes, MADV_DONTNEED) == 0;
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
    const guard_tier best = best_tier.load(std::memory_order_relaxed);
    if (markers_wanted() && markers.load(std::memory_order_relaxed) != knows::no) {
        if (::madvise(p, bytes, MADV_GUARD_INSTALL) == 0) {
            note(markers, knows::yes);
            return guard_tier::marker;
        }
        // A kernel without markers says so, and so does one that has them for a range that is locked in memory.
        if (errno == EINVAL && markers.load(std::memory_order_relaxed) == knows::untried) {
            note(markers, knows_markers() ? knows::yes : knows::no);
        }
    }
    if (best != guard_tier::none) {
        if (protect_guards.fetch_add(1, std::memory_order_relaxed) < protect_budget &&
            ::mprotect(p, bytes, PROT_NONE) == 0) {
            ::madvise(p, bytes, MADV_DONTNEED);  // a refusal keeps the memory, the guard holds all the same
            return guard_tier::protect;
        }
        protect_guards.fetch_sub(1, std::memory_order_relaxed);
    }
    return guard_tier::none;
}

std::size_t install_markers(const page_range* ranges, std::size_t count, bool used) noexcept {
    // Valgrind does not know the call, and says so on every one.
    if (!markers_wanted() || markers.load(std::memory_order_relaxed) == knows::no || under_valgrind()) {
        return 0;
    }
    if (used) {
        (void)advise_many(ranges, count, MADV_DONTNEED);  // a refusal costs time and nothing else
    }
    return advise_many(ranges, count, MADV_GUARD_INSTALL);
}

bool remove_guard(void* p, std::size_t bytes, guard_tier tier) noexcept {
    const errno_keeper keep;
    switch (tier) {
        case guard_tier::marker: return ::madvise(p, bytes, MADV_GUARD_REMOVE) == 0;
        case guard_tier::protect:
            if (::mprotect(p, bytes, PROT_READ | PROT_WRITE) != 0) {
                return false;
            }
            protect_guards.fetch_sub(1, std::memory_order_relaxed);
            return true;
        case guard_tier::moved: return ::mprotect(p, bytes, PROT_READ | PROT_WRITE) == 0;
        case guard_tier::none: break;
    }
    return true;
}

bool seal(void* p, std::size_t bytes) noexcept {
    const errno_keeper keep;
    return ::mmap(p, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
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
