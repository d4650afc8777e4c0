#pragma once

// Which unit of memory holds an address, for the whole process, floor 1. A radix tree of two levels over pages of 4
// KiB:
//
//   address bits  46 … 29          28 … 12          11 … 0
//                 root (2^18)  ->  leaf (2^17)  ->  range, or null
//
// Lookup is two dependent loads, without a lock. Resources may be stacked (a unit of one is carved from a block of the
// one below it): a page names the topmost range, and each range the one below it.

#include "os/guarded.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::metadata {

/// A piece of memory that a resource has taken over. Base of what the resources keep per unit.
struct address_range {
    std::uintptr_t base = 0;
    std::size_t size = 0;                        ///< bytes
    void* owner = nullptr;                       ///< core of the resource
    std::atomic<address_range*> below{nullptr};  ///< range of an upstream resource that this one was carved from
};

class address_map {
public:
    static constexpr unsigned page_bits = 12;
    static constexpr unsigned leaf_bits = 17;
#if defined(__aarch64__)
    static constexpr unsigned root_bits = 19;  // 48 bits of user addresses
#else
    static constexpr unsigned root_bits = 18;  // 47 bits of user addresses on x86-64
#endif

    /// The topmost range that holds \p address, or null. Only a range's first `indexed_bytes` are found.
    [[nodiscard]] static address_range* find(std::uintptr_t address) noexcept {
        const std::uintptr_t page = address >> page_bits;
        if (page >> (root_bits + leaf_bits) != 0) {
            return nullptr;
        }
        const leaf* const l = root_->leaves[page >> leaf_bits].load(std::memory_order_acquire);
        return l == nullptr ? nullptr : l->ranges[page & (leaf_size - 1)].load(std::memory_order_acquire);
    }

    /// As find, but the range of \p owner wherever it stands in the stack.
    [[nodiscard]] static address_range* find(std::uintptr_t address, const void* owner) noexcept {
        address_range* r = find(address);
        while (r != nullptr && r->owner != owner) {
            r = r->below.load(std::memory_order_acquire);
        }
        return r;
    }

    /// Pages of a larger range beyond this are not entered: a lookup there finds nothing, and error paths search by
    /// list.
    static constexpr std::size_t indexed_bytes = std::size_t{16} << 20;

    /// Effects: enters \p r, whose base is a multiple of the page size, on top of what is there.
    /// Returns: false, nothing entered, if private memory is used up. Preconditions: no other thread enters or erases
    /// the same pages meanwhile.
    static bool insert(address_range& r) noexcept;

    /// Effects: removes \p r and uncovers what was below it.
    static void erase(address_range& r) noexcept;

    /// Effects: gives all memory back, as the library is unloaded.
    static void give_back() noexcept;

private:
    static constexpr std::size_t leaf_size = std::size_t{1} << leaf_bits;
    struct leaf {
        std::atomic<address_range*> ranges[leaf_size];
    };

    static leaf* make_leaf(std::uintptr_t page) noexcept;

    struct root {
        std::atomic<leaf*> leaves[std::size_t{1} << root_bits];
    };
    static os::guarded<root> root_;
    static const os::guard_pages root_guards_;
};

}  // namespace pmr_debug::metadata
