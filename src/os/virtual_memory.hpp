#pragma once

// Virtual memory, floor 0. Every call reports failure to its caller and none throws; sizes are bytes, and pointers and
// sizes given to page calls must be multiples of page_size().

#include <cstddef>
#include <cstdint>

namespace pmr_debug::os {

/// Bytes of a page on this system; a power of two.
[[nodiscard]] std::size_t page_size() noexcept;

/// No process has that many bytes of addresses. A larger request cannot succeed: nothing is given up for it.
inline constexpr std::size_t address_space_bytes =
    sizeof(void*) == 8 ? static_cast<std::size_t>(std::uint64_t{1} << 48) : SIZE_MAX / 4;

[[nodiscard]] constexpr std::size_t round_up(std::size_t n, std::size_t unit) noexcept {
    return (n + unit - 1) & ~(unit - 1);
}

/// Effects: maps \p bytes of zeroed, readable and writable pages at an address that is a multiple of \p alignment.
/// Physical memory is taken at first touch only. Returns: null if the system refuses, as it does for more than it has.
[[nodiscard]] void* map(std::size_t bytes, std::size_t alignment) noexcept;

/// Effects: reserves address space without permissions and without memory; it is neither charged, nor locked, nor part
/// of a core file. Returns: null if the system refuses.
[[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept;

/// Bytes of addresses that the process may map by its limit (RLIMIT_AS); SIZE_MAX: there is none.
[[nodiscard]] std::size_t address_limit() noexcept;

/// How much address space to reserve where \p wanted would be welcome: where there is a limit, no more than that
/// fraction of it, as the program has other plans for it. A power of two, or \p wanted; at least 512 KiB of it.
[[nodiscard]] std::size_t share_of_addresses(std::size_t wanted, std::size_t parts) noexcept;

/// Effects: makes reserved pages readable and writable. Returns: false if the system refuses.
bool commit(void* p, std::size_t bytes) noexcept;
/// Effects: makes reserved pages, not committed yet, readable: zeros. Returns: false if the system refuses.
bool show(void* p, std::size_t bytes) noexcept;

/// Effects: makes pages read-only / readable and writable. Returns: false if the system refuses.
bool protect_read(void* p, std::size_t bytes) noexcept;
bool protect_read_write(void* p, std::size_t bytes) noexcept;

/// Effects: unmaps. Returns: false if the system refuses (it may, at the mapping limit).
bool unmap(void* p, std::size_t bytes) noexcept;

/// Effects: tries to map zeroed pages at exactly \p p. Returns: false, nothing changed, if the range is taken.
bool map_at(void* p, std::size_t bytes) noexcept;

/// Effects: tries to reserve exactly the pages at \p p. Returns: taken: something is mapped in the range.
enum class spot : std::uint8_t { reserved, taken, refused };
[[nodiscard]] spot reserve_at(void* p, std::size_t bytes) noexcept;

/// Returns: an address, a multiple of \p alignment, from which on \p bytes are unused now, and are likely to stay so:
/// for map_at. Null if none was found.
[[nodiscard]] void* unused_addresses(std::size_t bytes, std::size_t alignment) noexcept;

/// Effects: gives the contents back; the pages read as zero afterwards. Where the system refuses the usual call, as a
/// filter of system calls may, fresh pages are mapped in their place. Preconditions: all of it is readable, writable
/// and not guarded. Returns: false if the system refuses.
bool discard(void* p, std::size_t bytes) noexcept;

/// As discard, but with the usual call only, which leaves permissions and guards as they are.
bool discard_in_place(void* p, std::size_t bytes) noexcept;

/// Effects: takes memory for the pages now, which is cheaper than one fault a page. A refusal is harmless.
bool populate(void* p, std::size_t bytes) noexcept;

/// Bytes of a huge page, where the system has them (x86-64, and aarch64 with pages of 4 KiB).
inline constexpr std::size_t huge_page = std::size_t{1} << 21;

/// Effects: asks the system to use huge pages for a range from now on. Nothing but speed depends on the answer.
void prefer_huge_pages(void* p, std::size_t bytes) noexcept;

/// How a range was made inaccessible.
enum class guard_tier : std::uint8_t {
    marker,   ///< MADV_GUARD_INSTALL: splits no mapping (Linux 6.13 and later)
    protect,  ///< mprotect and MADV_DONTNEED: takes up to two mappings, so there is a budget
    moved,    ///< the pages are gone, the addresses are mapped without permissions (move_pages, seal)
    none,     ///< not at all
};

/// Effects: makes the pages fault on any access and gives their contents back. Tries the tiers in order, from the
/// first one allowed by force_guard_tier; one that was not seen to work is none: there are emulators, and kernels, that
/// answer success and guard nothing. Returns: the tier used; guard_tier::none if every one refused.
[[nodiscard]] guard_tier install_guard(void* p, std::size_t bytes) noexcept;

/// True if some tier works here, which is found out by its effect on a page of its own, once.
[[nodiscard]] bool guards_work() noexcept;

/// A range of pages.
struct page_range {
    void* start = nullptr;
    std::size_t bytes = 0;
};

/// What became of a list of ranges, counted from the first.
struct markings {
    std::size_t guarded = 0;
    std::size_t emptied = 0;  ///< their contents are given back, whether or not they are guarded
};

/// Effects: installs guard markers in all of \p ranges, with few system calls for many of them. \p used: there may be
/// contents, which are given back; to do that first, and for all, costs half of what the kernel takes to guard pages in
/// use one by one. Those that are not guarded are for install_guard.
[[nodiscard]] markings install_markers(const page_range* ranges, std::size_t count, bool used) noexcept;

/// Effects: undoes install_guard with the same \p tier; the pages read as zero. Returns: false if the system refuses.
bool remove_guard(void* p, std::size_t bytes, guard_tier tier) noexcept;

/// How move_pages went.
struct move_result {
    bool moved = false;
    guard_tier trap = guard_tier::none;  ///< moved: how \p from faults now. none: it does not, and reads as zero
};

/// Effects: moves the pages of one range to another, whose own pages are lost; \p from faults on any access afterwards.
/// Both must be single mappings made by this interface. Cheaper than discarding pages and faulting in others by two
/// orders of magnitude. If the system refuses, \p from is as before, and \p to is still taken, but may be without
/// permissions.
[[nodiscard]] move_result move_pages(void* from, void* to, std::size_t bytes) noexcept;

/// Effects: as the end of move_pages: gives the contents back and leaves the range mapped without permissions.
/// Neighbouring sealed ranges are one mapping. Returns: false if the system refuses.
bool seal(void* p, std::size_t bytes) noexcept;

/// Effects: \p count ranges guarded by guard_tier::protect are about to be unmapped as they are: they leave the budget.
void forget_protect_guards(int count) noexcept;

/// For tests: no tier before \p best is tried from now on.
void force_guard_tier(guard_tier best) noexcept;

/// For tests: from now on the system answers success and guards nothing; false: as it is. What was found out is
/// forgotten.
void pretend_guards(bool on) noexcept;

/// Bytes of [p, p + bytes) that are in memory now.
[[nodiscard]] std::size_t resident(const void* p, std::size_t bytes) noexcept;

/// Peak resident bytes of this process so far.
[[nodiscard]] std::size_t peak_resident() noexcept;

}  // namespace pmr_debug::os
