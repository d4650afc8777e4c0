#include "resources/canary_quarantine.hpp"

namespace pmr_debug::detail {

namespace {

constexpr std::size_t first_items = 64;
/// So many bytes come in before the process's books are told.
constexpr std::size_t settle_step = std::size_t{1} << 16;

constexpr std::size_t charge(const retired_block& b) noexcept {
    return b.bytes + sizeof(retired_block);
}

}  // namespace

bool retired_queue::push(metadata::arena& memory, const retired_block& b) noexcept {
    const std::uint64_t room = items_ != nullptr ? mask_ + 1 : 0;
    if (tail_ - head_ == room) {
        const std::uint64_t count = room != 0 ? room * 2 : first_items;
        auto* const fresh = static_cast<retired_block*>(memory.allocate(count * sizeof(retired_block)));
        if (fresh == nullptr) {
            return false;
        }
        for (std::uint64_t i = head_; i != tail_; ++i) {
            fresh[i & (count - 1)] = items_[i & mask_];
        }
        if (items_ != nullptr) {
            memory.free(items_, room * sizeof(retired_block));
        }
        items_ = fresh;
        mask_ = count - 1;
    }
    items_[tail_++ & mask_] = b;
    return true;
}

void canary_quarantine::leave_held(const retired_block& b) noexcept {
    charged_ -= charge(b);
    totals_.bytes -= b.bytes;
    --totals_.blocks;
}

void canary_quarantine::keep_held(const retired_block& b) noexcept {
    // Without memory for the record the block is never given back, which is right, too.
    (void)damaged_.push(*memory_, b);
    ++totals_.damaged_blocks;
    totals_.damaged_bytes += b.bytes;
}

canary_quarantine::outcome canary_quarantine::take_excess_held(retired_block& oldest) noexcept {
    while (has_excess() && !waiting_.empty()) {
        oldest = waiting_.pop();
        if (oldest.block.address == nullptr) {
            continue;
        }
        leave_held(oldest);
        prefetch_held();
        return has_excess() ? outcome::more : outcome::leaves;
    }
    return outcome::done;
}

void canary_quarantine::prefetch_held() const noexcept {
    // Blocks that waited are no longer in the cache. Some turns ahead, so that memory has the time it takes.
    constexpr std::uint64_t ahead = 6;
    constexpr std::size_t line = 64;
    constexpr std::size_t most = 5 * line;
    if (waiting_.tail() - waiting_.head() <= ahead) {
        return;
    }
    const retired_block& b = waiting_.at(waiting_.head() + ahead);
    if (b.block.address == nullptr) {  // taken out meanwhile
        return;
    }
    // The upstream may have a header before the guard; after five lines the processor has noticed by itself.
    const std::byte* const from = static_cast<const std::byte*>(b.block.address) - line / 2;
    const std::size_t bytes = b.bytes < most ? b.bytes : most;
    for (std::size_t at = 0; at < bytes + line / 2; at += line) {
        __builtin_prefetch(from + at, 1);
    }
}

canary_quarantine::outcome canary_quarantine::put(const retired_block& b, retired_block& oldest) noexcept {
    const os::brief_hold<true> hold(lock_);
    if (!waiting_.push(*memory_, b)) {
        return outcome::no_memory;
    }
    charged_ += charge(b);
    totals_.bytes += b.bytes;
    ++totals_.blocks;
    passed_ += charge(b);
    if (passed_ >= settle_step) {
        settle_held();
    }
    return take_excess_held(oldest);
}

void canary_quarantine::settle_held() noexcept {
    passed_ = 0;
    if (held_ == nullptr) {
        return;  // never opened: nothing waits by this policy
    }
    const std::size_t held = held_->load(std::memory_order_relaxed);
    allowed_ = share_.settle(charged_, held > totals_.bytes ? held - totals_.bytes : 0);
}

canary_quarantine::outcome canary_quarantine::take_excess(retired_block& oldest) noexcept {
    const os::brief_hold<true> hold(lock_);
    return take_excess_held(oldest);
}

bool canary_quarantine::take_waiting_held(retired_block& b) noexcept {
    while (!waiting_.empty()) {
        b = waiting_.pop();
        if (b.block.address != nullptr) {
            leave_held(b);
            return true;
        }
    }
    return false;
}

bool canary_quarantine::take_waiting(retired_block& b) noexcept {
    const os::brief_hold<true> hold(lock_);
    const bool any = take_waiting_held(b);
    if (!any) {  // it was emptied: others may keep more now
        settle_held();
    }
    return any;
}

bool canary_quarantine::take_any(retired_block& b) noexcept {
    const os::brief_hold<true> hold(lock_);
    if (take_waiting_held(b)) {
        return true;
    }
    if (damaged_.empty()) {
        settle_held();
        return false;
    }
    b = damaged_.pop();
    --totals_.damaged_blocks;
    totals_.damaged_bytes -= b.bytes;
    return true;
}

void canary_quarantine::keep(const retired_block& b) noexcept {
    const os::brief_hold<true> hold(lock_);
    keep_held(b);
}

bool canary_quarantine::find(const void* p, metadata::block_entry& found) noexcept {
    const os::brief_hold<true> hold(lock_);
    for (retired_queue* const q : {&waiting_, &damaged_}) {
        for (std::uint64_t i = q->head(); i != q->tail(); ++i) {
            if (q->at(i).block.address == p) {
                found = q->at(i).block;
                return true;
            }
        }
    }
    return false;
}

quarantine_statistics canary_quarantine::totals() noexcept {
    const os::look seen(lock_);
    return totals_;
}

}  // namespace pmr_debug::detail
