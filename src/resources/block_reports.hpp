#pragma once

// Reports that every resource with a block table makes in the same way, floor 4.

#include "metadata/block_table.hpp"
#include "metadata/registry.hpp"
#include "report/dispatch.hpp"

#include <cstddef>
#include <string_view>

namespace pmr_debug::detail {

/// A report of \p kind by the resource \p self (null: one that could not be registered).
[[nodiscard]] report report_of(const metadata::resource_record* self, error_kind kind) noexcept;

/// The same about a call with what it was given.
[[nodiscard]] report call_report(const metadata::resource_record* self, error_kind kind, const void* p,
                                 std::size_t bytes, std::size_t alignment) noexcept;

/// Effects: if the pointer of the invalid_free \p r was a block of a resource that is dead, or lies in memory that such
/// a one had, says so in it. Not if the
///   block \p nearest of the reporting resource (null: none) lies there, too: that memory was handed out anew.
/// Returns: whether it says so.
bool add_former_owner(report& r, const void* nearest) noexcept;

/// Who else has a live block that starts where one of \p self does: the first of an arena's chunk, or buffer. Asked if
/// the caller names another size or alignment than that of ours.
/// Returns: the resource that stands on \p self and has a block at \p p, or another one whose block is as given; id 0:
/// nobody. \p theirs: the block.
[[nodiscard]] resource_ref other_owner(const void* p, std::size_t bytes, std::size_t alignment,
                                       const metadata::resource_record* self, metadata::owned_block& theirs) noexcept;

/// Effects: notes in \p r, which tells damage at first_bad, that the live block \p theirs of \p owner (id 0: the
///   reporting resource's own) covers that byte.
void add_covering(report& r, const resource_ref& owner, const metadata::owned_block& theirs) noexcept;

/// Effects: looks whether a live block of another resource covers first_bad of \p r, and notes it. Preconditions: no
///   lock is held.
void look_for_covering(report& r, const metadata::resource_record* self) noexcept;

/// A live block of another resource; id 0: none.
struct covering_block {
    resource_ref owner;
    metadata::owned_block block;
};

/// Effects: looks whether a live block of another resource covers one of the bytes of [from, to) that are not
///   \p expected, nor 0 where that is allowed. Who mends such bytes asks first: they may be right as they are. Takes no
///   lock. Returns: the first such block.
[[nodiscard]] covering_block covering_damage(std::uintptr_t from, std::uintptr_t to, unsigned char expected,
                                             bool or_zero, const metadata::own_memory& mine,
                                             const metadata::resource_record* self) noexcept;

/// What is to be said if a block of the reporting resource was freed where another's lives now: which of the two was
/// meant is not known.
inline constexpr std::string_view hint_second_free_or_wrong =
    "a block that this resource freed was there before, and its memory was handed out anew: this is a second free of "
    "that one, or the owner's block came to the wrong resource";
/// The same, if both are the reporting resource's.
inline constexpr std::string_view hint_second_free_or_mismatch =
    "a block of the given size was freed there before, and its memory was handed out anew: this is a second free of "
    "that "
    "one, or the block that is there now was given the wrong size";

/// Who reports. \p self may be null (a resource that could not be registered).
struct block_reporter {
    error_tally& errors;
    const metadata::resource_record* self;
    metadata::block_table& blocks;
    /// The upstream's block in which one lies, asked with \p core; null: it is the same.
    metadata::block_below (*below_of)(const void* core, const metadata::block_entry& e) noexcept = nullptr;
    const void* core = nullptr;

    /// Effects: raises \p kind about a request of \p bytes and \p alignment.
    void request(error_kind kind, const void* p, std::size_t bytes, std::size_t alignment) const noexcept;

    /// Effects: raises \p kind about a request and a known block.
    void block(error_kind kind, const void* p, const metadata::block_entry& known, std::size_t bytes,
               std::size_t alignment) const noexcept;

    /// Effects: raises limit_exceeded.
    void limit(std::size_t limit, std::size_t in_use, std::size_t bytes, std::size_t alignment) const noexcept;

    /// Effects: finds out what is wrong with a pointer that is no live block, and raises null_free, double_free,
    ///   wrong_resource, interior_free or invalid_free. \p found: the record, if \p why is `freed`.
    void bad_pointer(metadata::block_table::outcome why, const void* p, const metadata::block_entry& found,
                     std::size_t bytes, std::size_t alignment) const noexcept;

    /// Effects: if a live block of ours starts at \p p, of another size or alignment, and so does another's (see
    ///   other_owner), raises wrong_resource. Returns: true if so; ours is to stay then.
    [[nodiscard]] bool is_anothers(const void* p, std::size_t bytes, std::size_t alignment) const noexcept;

    /// Effects: raises size_mismatch and alignment_mismatch as they apply.
    void mismatch(const void* p, const metadata::block_entry& known, std::size_t bytes,
                  std::size_t alignment) const noexcept;

    /// Effects: the live blocks are remembered beyond the resource's end. Preconditions: it is about to end.
    void leave_blocks() const noexcept;

    /// Effects: raises one report, of leak or \p kind, about all live blocks, if there are any. Returns: how many.
    std::size_t leaks(error_kind kind = error_kind::leak, std::string_view hint = {}) const noexcept;

    /// Effects: raises live_at_destruction about blocks whose memory the upstream is to take back.
    void winked_out() const noexcept;
};

/// Effects: for the end of a resource's destructor: takes its core away first, as a signal handler may ask for
/// statistics at any moment. What was written to the dead object stays in memory, above all the pointer to its base
/// class's functions: a call on it finds them. Returns: the core.
template <class Core>
[[nodiscard]] Core* take_core(Core*& core, const void* object) noexcept {
    Core* const taken = core;
    core = nullptr;
    asm volatile("" : : "r"(object) : "memory");
    return taken;
}

/// Effects: raises destroyed_resource about a call to the dead resource at \p address, to the default handler.
void report_destroyed(const void* address, std::string_view type, const void* p, std::size_t bytes,
                      std::size_t alignment) noexcept;

}  // namespace pmr_debug::detail
