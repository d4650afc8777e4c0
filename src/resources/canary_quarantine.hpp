#pragma once

// Freed blocks that wait, and damaged ones that stay, floor 4.

#include "metadata/arena.hpp"
#include "metadata/block_table.hpp"
#include "metadata/quarantine_budget.hpp"
#include "os/brief_lock.hpp"
#include "resources/canary_pattern.hpp"

#include <pmr_debug/canary_resource.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail {

/// A freed block.
struct retired_block {
    metadata::block_entry block;
    std::size_t bytes = 0;  ///< of the upstream's, guards included
};

/// A queue in an arena that grows as needed.
class retired_queue {
public:
    [[nodiscard]] bool push(metadata::arena& memory, const retired_block& b) noexcept;
    [[nodiscard]] bool empty() const noexcept { return head_ == tail_; }
    /// Preconditions: not empty.
    retired_block pop() noexcept { return items_[head_++ & mask_]; }

    /// Numbers of the oldest entry and of the next one; they only grow.
    [[nodiscard]] std::uint64_t head() const noexcept { return head_; }
    [[nodiscard]] std::uint64_t tail() const noexcept { return tail_; }
    /// Preconditions: head() <= number < tail().
    [[nodiscard]] retired_block& at(std::uint64_t number) noexcept { return items_[number & mask_]; }
    [[nodiscard]] const retired_block& at(std::uint64_t number) const noexcept { return items_[number & mask_]; }

private:
    retired_block* items_ = nullptr;
    std::uint64_t mask_ = 0;
    std::uint64_t head_ = 0;
    std::uint64_t tail_ = 0;
};

/// First in, first out, bounded by bytes and blocks. Thread safety: any thread, by its own lock.
class canary_quarantine {
public:
    /// Preconditions: \p memory outlives it.
    /// \p held counts the bytes that the resource has of its upstream; \p below: see quarantine_share.
    void open(metadata::arena& memory, std::size_t limit_bytes, std::size_t limit_blocks,
              const std::atomic<std::size_t>& held, unsigned below) noexcept {
        memory_ = &memory;
        held_ = &held;
        limit_ = limit_bytes;
        share_.open(limit_bytes, canary_options().quarantine_bytes, below);
        allowed_ = share_.limit();
        limit_blocks_ = limit_blocks != 0 ? limit_blocks : SIZE_MAX;
    }

    /// Effects: leaves the process's books.
    void close() noexcept { share_.close(); }
    /// What may be kept now.
    [[nodiscard]] std::size_t allowed() const noexcept { return share_.limit(); }

    /// True if a block of that many upstream bytes fits at all.
    [[nodiscard]] bool takes(std::size_t bytes) const noexcept {
        const std::size_t most = std::min(limit_, share_.limit());
        return most > sizeof(retired_block) && bytes <= most - sizeof(retired_block);
    }

    enum class outcome : std::uint8_t {
        done,       ///< nothing is to leave
        leaves,     ///< a block was taken out
        more,       ///< the same, and another one is to be taken out
        no_memory,  ///< put in: not done
    };

    /// Effects: puts \p b in, and takes out the oldest block if that is too much. Preconditions: takes(b.bytes).
    [[nodiscard]] outcome put(const retired_block& b, retired_block& oldest) noexcept;
    /// Effects: takes out the oldest block if there is too much.
    [[nodiscard]] outcome take_excess(retired_block& oldest) noexcept;
    /// Effects: takes out the oldest block that waits. Returns: false if none does.
    [[nodiscard]] bool take_waiting(retired_block& b) noexcept;
    /// Effects: takes out any block, damaged ones included. Returns: false if there are none left.
    [[nodiscard]] bool take_any(retired_block& b) noexcept;
    /// Effects: keeps \p b, which was written over, until destruction.
    void keep(const retired_block& b) noexcept;
    /// Effects: copies the record of the block that begins at \p p. Slow: looks at every record.
    [[nodiscard]] bool find(const void* p, metadata::block_entry& found) noexcept;
    [[nodiscard]] quarantine_statistics totals() noexcept;
    /// Effects: as block_table::peek, for the blocks that wait and the damaged ones.
    template <class Visit>
    void peek(Visit&& visit) const noexcept {
        for (const retired_queue* const q : {&waiting_, &damaged_}) {
            for (std::uint64_t i = q->head(); i != q->tail(); ++i) {
                if (q->at(i).block.address != nullptr && !visit(q->at(i).block)) {
                    return;
                }
            }
        }
    }

    /// Effects: as peek(), with the lock held: no block is given back meanwhile.
    template <class Visit>
    void visit(Visit&& visit) noexcept {
        const os::brief_hold<true> hold(lock_);
        peek(visit);
    }

    /// A damaged block that was found waiting.
    struct finding {
        metadata::block_entry block;
        canary_damage damage;
    };

    /// Effects: verifies a few of the waiting blocks, from number \p next on, which is moved on, with the lock held;
    ///   keeps damaged ones. \p examine(retired_block) returns canary_damage and must not call back.
    /// Returns: how many findings were written to \p out; \p next is `end` when there is no more.
    static constexpr std::size_t batch = 32;
    static constexpr std::uint64_t end = ~std::uint64_t{0};
    template <class Examine>
    std::size_t sweep(std::uint64_t& next, finding (&out)[batch], Examine&& examine) noexcept {
        const os::brief_hold<true> hold(lock_);
        std::size_t found = 0;
        std::uint64_t i = next > waiting_.head() ? next : waiting_.head();
        for (std::size_t n = 0; n < batch && i < waiting_.tail(); ++n, ++i) {
            retired_block& b = waiting_.at(i);
            if (b.block.address == nullptr) {
                continue;
            }
            const canary_damage d = examine(b);
            if (d.first != nullptr) {
                out[found++] = {.block = b.block, .damage = d};
                keep_held(b);
                leave_held(b);
                b.block.address = nullptr;  // a gap in the queue
            }
        }
        next = i < waiting_.tail() ? i : end;
        return found;
    }

    /// Effects: a fork takes the lock.
    void hold(os::fork_locks& locks) noexcept { locks.take(lock_); }

private:
    [[nodiscard]] bool has_excess() const noexcept { return charged_ > allowed_ || totals_.blocks > limit_blocks_; }
    void leave_held(const retired_block& b) noexcept;
    void keep_held(const retired_block& b) noexcept;
    void settle_held() noexcept;
    [[nodiscard]] bool take_waiting_held(retired_block& b) noexcept;
    void prefetch_held() const noexcept;
    outcome take_excess_held(retired_block& oldest) noexcept;

    os::brief_lock lock_;
    metadata::arena* memory_ = nullptr;
    std::size_t limit_ = 0;
    std::size_t limit_blocks_ = SIZE_MAX;
    metadata::quarantine_share share_;
    const std::atomic<std::size_t>* held_ = nullptr;
    std::size_t allowed_ = 0;  // limit_, or less where other resources keep much
    std::size_t passed_ = 0;   // bytes that came in since that was asked
    std::size_t charged_ = 0;  // bytes of waiting blocks and their records
    retired_queue waiting_;
    retired_queue damaged_;
    quarantine_statistics totals_;
};

}  // namespace pmr_debug::detail
