#include "metadata/address_map.hpp"

#include "os/virtual_memory.hpp"

namespace pmr_debug::metadata {

constinit os::guarded<address_map::root> address_map::root_;

const os::guard_pages address_map::root_guards_(address_map::root_);

namespace {

constexpr std::size_t page = std::size_t{1} << address_map::page_bits;

std::size_t indexed_pages(const address_range& r) noexcept {
    const std::size_t bytes = r.size < address_map::indexed_bytes ? r.size : address_map::indexed_bytes;
    return (bytes + page - 1) >> address_map::page_bits;
}

}  // namespace

address_map::leaf* address_map::make_leaf(std::uintptr_t at) noexcept {
    std::atomic<leaf*>& entry = root_->leaves[at >> leaf_bits];
    leaf* current = entry.load(std::memory_order_acquire);
    if (current != nullptr) {
        return current;
    }
    // Fresh pages are zero, which is what an empty leaf is; they take memory only where they are used.
    auto* const fresh = static_cast<leaf*>(os::map(sizeof(leaf), page));
    if (fresh == nullptr) {
        return nullptr;
    }
    if (entry.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) {
        return fresh;
    }
    os::unmap(fresh, sizeof(leaf));  // another thread was first
    return current;
}

void address_map::give_back() noexcept {
    for (std::atomic<leaf*>& entry : root_->leaves) {
        if (leaf* const l = entry.load(std::memory_order_acquire); l != nullptr) {
            entry.store(nullptr, std::memory_order_release);
            os::unmap(l, sizeof(leaf));
        }
    }
}

bool address_map::insert(address_range& r) noexcept {
    const std::uintptr_t first = r.base >> page_bits;
    const std::size_t count = indexed_pages(r);
    if ((first + count) >> (root_bits + leaf_bits) != 0) {
        return false;
    }
    for (std::uintptr_t at = first; at < first + count; at = (at | (leaf_size - 1)) + 1) {
        if (make_leaf(at) == nullptr) {
            return false;
        }
    }
    r.below.store(find(r.base), std::memory_order_release);
    for (std::uintptr_t at = first; at < first + count; ++at) {
        root_->leaves[at >> leaf_bits]
            .load(std::memory_order_relaxed)
            ->ranges[at & (leaf_size - 1)]
            .store(&r, std::memory_order_release);
    }
    return true;
}

void address_map::erase(address_range& r) noexcept {
    const std::uintptr_t first = r.base >> page_bits;
    const std::size_t count = indexed_pages(r);
    address_range* const below = r.below.load(std::memory_order_acquire);
    for (std::uintptr_t at = first; at < first + count; ++at) {
        leaf* const l = root_->leaves[at >> leaf_bits].load(std::memory_order_acquire);
        if (l == nullptr) {
            continue;
        }
        std::atomic<address_range*>& entry = l->ranges[at & (leaf_size - 1)];
        address_range* top = entry.load(std::memory_order_acquire);
        if (top == &r) {
            entry.store(below, std::memory_order_release);
            continue;
        }
        for (; top != nullptr; top = top->below.load(std::memory_order_acquire)) {
            if (top->below.load(std::memory_order_acquire) == &r) {
                top->below.store(below, std::memory_order_release);
                break;
            }
        }
    }
}

}  // namespace pmr_debug::metadata
