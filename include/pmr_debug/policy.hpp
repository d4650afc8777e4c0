#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// What a debug resource checks, decided at compile time.
///
/// A `policy` is a structural type, used as a non-type template parameter, so a check that a policy turns off is not
/// compiled into the fast path: no branch, no byte.
///
/// \code
///   constexpr pmr_debug::policy my_policy{.alloc_frames = 16, .free_frames = 4};
///   pmr_debug::basic_general_purpose_resource<my_policy> resource;
/// \endcode

#include <cstddef>
#include <cstdint>

namespace pmr_debug {

/// Who may use a resource.
enum class threading : std::uint8_t {
    /// One thread at a time, on the caller's word. Nothing is checked and nothing is atomic.
    unchecked,
    /// One thread only. The first use binds the resource to its thread; a use from another one is reported as
    /// `error_kind::foreign_thread`, with a trace of each thread's use. `rebind_thread()` hands the resource over.
    single_checked,
    /// Any number of threads. No lock on the fast path.
    synchronized,
};

/// What becomes of the memory of a freed block.
enum class reuse : std::uint8_t {
    /// The next request may get it. Best locality; a use after free goes unnoticed.
    immediate,
    /// Units wait in a first-in first-out quarantine, bounded in bytes by the resource's options, before they are used
    /// again.
    quarantined,
    /// No address is handed out twice within the budget of freed memory (the options' quarantine_bytes).
    never,
};

/// What becomes of a unit (a span of slots, or one large block) when its last block is freed, before it is used again.
enum class dead_unit : std::uint8_t {
    /// Contents are kept and stay readable.
    keep,
    /// Its memory is taken away, its addresses stay reserved without permissions, so a late access faults. In batches:
    /// a small unit waits, within the options' quarantine_bytes, until its neighbours are dead as well, and their pages
    /// are then used again at fresh addresses. Needs an upstream that can do so (`page_resource`); others keep the
    /// memory, and the unit counts as untrapped. Does not apply under reuse::immediate, where no unit stays dead.
    trap,
    /// As `trap`, but each unit at once, and its memory goes back to the operating system.
    trap_at_once,
};

/// Which freed blocks are made inaccessible at once, so that a late access, a read as well, faults at the instruction:
/// chosen when the program runs, by an option of `general_purpose_resource` and `end_of_page_resource`, whatever their
/// policy says. A block of those takes a page or more, and two system calls in its life.
///
/// \code
///   pmr_debug::general_purpose_options options;
///   options.trap_freed = {.one_in = 1};                     // all
///   options.trap_freed = {.at_least = 256};                 // those of 256 bytes or more
///   options.trap_freed = {.at_least = 256, .one_in = 100};  // of those each hundredth
///   options.trap_freed = {.first = 0};                      // none
///   pmr_debug::general_purpose_resource resource(options);
/// \endcode
struct trap_selection {
    std::size_t at_least = 0;  ///< blocks of so many bytes or more
    std::size_t one_in = 0;    ///< of those each n-th; 0, 1: every one
    /// Where the two above are 0: the first so many small blocks, while there is a `fault_handler`, as the default of
    /// `end_of_page_resource`, unless its policy uses freed memory again, and of `general_purpose_resource` under
    /// dead_unit::trap_at_once, over a `page_resource`. So a small program gets all of its late accesses told, and a
    /// large one pays for a thousand.
    std::size_t first = 1'000;

    /// False, as by default, if blocks are not chosen by size or number.
    [[nodiscard]] constexpr bool on() const noexcept { return at_least != 0 || one_in != 0; }
};

/// Compile-time configuration of a debug resource. Aggregate and structural.
struct policy {
    /// Who may use the resource.
    threading threads = threading::synchronized;
    /// Frames of the program kept of the allocating call path, 0 (none) to 64; library code between them is for
    /// nothing.
    std::uint8_t alloc_frames = 8;
    /// The same of the freeing call path.
    std::uint8_t free_frames = 8;
    /// Verify what the caller hands back. Off: no record is kept for a block, so no report about a block is ever made.
    /// general_purpose_resource then still reports a limit that is reached and an upstream that misbehaves.
    bool checks = true;
    /// Least number of canary bytes behind each block; the canary covers the whole slack of its slot. 0: no canary.
    std::uint16_t guard_bytes = 16;
    /// Fill fresh blocks with 0xAA and freed ones with 0xDD, and verify the latter before the memory is used again.
    bool fill = true;
    /// What becomes of freed memory.
    reuse freed = reuse::never;
    /// What becomes of a unit whose blocks are all freed.
    dead_unit dead = dead_unit::trap;
    /// Write-protect the resource's own records between calls. Costs two system calls an operation.
    /// general_purpose_resource only: those of the others are behind guard pages, and writable.
    bool protect_metadata = false;
    /// Place blocks so that they are aligned to what was asked for and to no more, wherever the resource has the
    /// choice: code that relies on an alignment it did not ask for then fails at once. A block may take up to twice its
    /// alignment more. Costs nothing where it is off.
    bool exact_alignment = false;

    friend constexpr bool operator==(const policy&, const policy&) = default;
};

/// Most frames a trace may keep.
inline constexpr unsigned max_frames = 64;

/// Everything on, at a cost that a test run does not notice.
inline constexpr policy default_policy{};

/// Everything on, deeper traces, dead units trapped at once, write-protected records, no alignment by chance.
inline constexpr policy thorough_policy{.alloc_frames = 24,
                                        .free_frames = 24,
                                        .dead = dead_unit::trap_at_once,
                                        .protect_metadata = true,
                                        .exact_alignment = true};

/// Checks without traces, canaries or fills.
inline constexpr policy fast_policy{.alloc_frames = 0, .free_frames = 0, .guard_bytes = 0, .fill = false};

/// No checks: an allocator for release builds behind the same interface.
inline constexpr policy release_policy{.alloc_frames = 0,
                                       .free_frames = 0,
                                       .checks = false,
                                       .guard_bytes = 0,
                                       .fill = false,
                                       .freed = reuse::immediate,
                                       .dead = dead_unit::keep};

/// True if \p p can be used: frame counts within `max_frames`, and nothing that needs checks asked for without them.
[[nodiscard]] constexpr bool is_valid(const policy& p) noexcept {
    const bool within = p.alloc_frames <= max_frames && p.free_frames <= max_frames && p.guard_bytes <= 4096;
    const bool plain = p.alloc_frames == 0 && p.free_frames == 0 && p.guard_bytes == 0 && !p.fill &&
                       !p.protect_metadata && !p.exact_alignment;
    return within && (p.checks || plain);
}

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
