#pragma once

// What resources leave behind when they die, floor 1: the blocks that were live then, and the memory they had. A block
// that is freed into another resource later can so be told whose it was.

#include "metadata/registry.hpp"
#include "os/spare_stack.hpp"

#include <cstddef>
#include <cstdint>

namespace pmr_debug::metadata {

/// Blocks of one resource that are remembered. Of the others only the ranges tell.
inline constexpr std::size_t remains_of_one = 128;
/// Of all dead resources together: the last ones.
inline constexpr std::size_t left_blocks_kept = 4096;
inline constexpr std::size_t left_ranges_kept = 2048;

/// What one resource leaves. Filled under its own locks, which must not be held when it is handed to leave_behind: the
/// registry's comes before them.
class remains {
public:
    /// Effects: notes a live block. Beyond `remains_of_one` none.
    void add_block(const block_info& block, trace_id allocated) noexcept {
        if (block_count_ < remains_of_one) {
            blocks_[block_count_++] = {.block = block, .allocated = allocated};
        }
    }
    /// Effects: notes memory; what adjoins the range noted last makes that longer. Beyond `remains_of_one` none.
    void add_range(std::uintptr_t from, std::size_t bytes) noexcept {
        if (range_count_ != 0 && ranges_[range_count_ - 1].adjoins(from, bytes)) {
            range& last = ranges_[range_count_ - 1];
            last.from = from < last.from ? from : last.from;
            last.bytes += bytes;
        } else if (bytes != 0 && range_count_ < remains_of_one) {
            ranges_[range_count_++] = {from, bytes};
        }
    }

    /// True if no further block is noted.
    [[nodiscard]] bool full() const noexcept { return block_count_ == remains_of_one; }

private:
    friend void leave_behind(const resource_record* r, const remains& what) noexcept;

    struct range {
        std::uintptr_t from = 0;
        std::size_t bytes = 0;

        [[nodiscard]] bool adjoins(std::uintptr_t start, std::size_t n) const noexcept {
            return start == from + bytes || start + n == from;
        }
    };

    owned_block blocks_[remains_of_one];
    std::size_t block_count_ = 0;
    range ranges_[remains_of_one];
    std::size_t range_count_ = 0;
};

/// Effects: remembers what \p r leaves, until others have left enough. Null is allowed. Preconditions: none of the
/// resource's locks is held.
void leave_behind(const resource_record* r, const remains& what) noexcept;

/// Effects: calls \p fill(what), and remembers that, as above. On a stack with room: a list takes 12 KiB, and a
/// resource may be destroyed in a small thread. \p fill may take the resource's locks, and has given them back when it
/// returns.
template <class Fill>
void leave_behind_filled(const resource_record* r, Fill fill) noexcept {
    struct task {
        const resource_record* r;
        Fill& fill;
    } t{r, fill};
    os::with_room(
        [](void* context) {
            const task& mine = *static_cast<task*>(context);
            remains what;
            mine.fill(what);
            leave_behind(mine.r, what);
        },
        &t);
}

/// \p nearest: the block that the asking resource knows close to \p p, or null. If it lies in the same memory, that was
/// handed out anew. \p was, if not null: the block that began at \p p when its resource died, its state unknown, if one
/// is remembered.
/// Returns: the dead resource, the last one, that had that block, or the memory at \p p; id 0 if none is known, or if a
/// living resource is known to have it now. Whose it is now is not known: the upstream may have handed it out anew.
[[nodiscard]] resource_ref find_former_owner(const void* p, const void* nearest = nullptr,
                                             owned_block* was = nullptr) noexcept;

}  // namespace pmr_debug::metadata
