#include "report/leaks.hpp"

#include "os/virtual_memory.hpp"

#include <cstring>
#include <memory>
#include <range/v3/algorithm/sort.hpp>
#include <span>
#include <tuple>

namespace pmr_debug::detail {

namespace {

constexpr std::size_t first_capacity = 1024;

// Blocks without a trace are kept apart by size: that is all there is to tell them apart.
constexpr std::size_t size_key(trace_id allocated, std::size_t bytes) noexcept {
    return allocated == trace_id::none ? bytes : 0;
}

constexpr std::size_t hash(trace_id allocated, std::size_t key) noexcept {
    const std::uint64_t mixed = (static_cast<std::uint64_t>(allocated) + key * 31) * 0x9E3779B97F4A7C15U;
    return static_cast<std::size_t>(mixed ^ (mixed >> 32U));
}

/// Most bytes first, then most blocks; equal ones in a fixed order.
auto rank(const leak_group& g) noexcept {
    return std::tuple(~g.bytes, ~g.blocks, g.allocated);
}

}  // namespace

leak_grouper::~leak_grouper() {
    if (groups_ != nullptr) {
        os::unmap(groups_, mapped_);
    }
}

std::uint32_t* leak_grouper::find_slot(trace_id allocated, std::size_t bytes) const noexcept {
    const std::size_t key = size_key(allocated, bytes);
    for (std::size_t at = hash(allocated, key);; ++at) {
        std::uint32_t& slot = slots_[at & slot_mask_];
        if (slot == 0) {
            return &slot;
        }
        const leak_group& group = groups_[slot - 1];
        if (group.allocated == allocated && size_key(allocated, group.example_size) == key) {
            return &slot;
        }
    }
}

bool leak_grouper::grow() noexcept {
    const std::size_t capacity = capacity_ == 0 ? first_capacity : 2 * capacity_;
    const std::size_t slots = 2 * capacity;  // at most half full: short probes
    const std::size_t group_bytes = (capacity + 1) * sizeof(leak_group);
    const std::size_t serial_bytes = capacity * sizeof(std::uint64_t);
    const std::size_t bytes = os::round_up(group_bytes + serial_bytes + slots * sizeof(std::uint32_t), os::page_size());
    auto* const memory = static_cast<unsigned char*>(os::map(bytes, os::page_size()));
    if (memory == nullptr) {
        return false;
    }
    static_assert(sizeof(leak_group) % alignof(std::uint64_t) == 0);
    auto* const groups = reinterpret_cast<leak_group*>(memory);
    auto* const serials = reinterpret_cast<std::uint64_t*>(memory + group_bytes);
    std::uninitialized_copy_n(groups_, size_, groups);
    std::uninitialized_copy_n(serials_, size_, serials);
    if (groups_ != nullptr) {
        os::unmap(groups_, mapped_);
    }
    groups_ = groups;
    serials_ = serials;
    slots_ = reinterpret_cast<std::uint32_t*>(memory + group_bytes + serial_bytes);  // fresh pages are zero: all free
    capacity_ = capacity;
    slot_mask_ = slots - 1;
    mapped_ = bytes;
    for (std::size_t i = 0; i < size_; ++i) {
        *find_slot(groups_[i].allocated, groups_[i].example_size) = static_cast<std::uint32_t>(i + 1);
    }
    return true;
}

bool leak_grouper::add(trace_id allocated, std::size_t bytes, const void* address, std::uint64_t serial) noexcept {
    ++total_blocks_;
    total_bytes_ += bytes;
    if (groups_ == nullptr) {
        grow();
    }
    std::uint32_t* slot = groups_ != nullptr ? find_slot(allocated, bytes) : nullptr;
    if (slot != nullptr && *slot == 0 && size_ == capacity_) {
        slot = grow() ? find_slot(allocated, bytes) : nullptr;
    }
    if (slot == nullptr || (*slot == 0 && size_ >= most_groups_)) {
        if (rest_.blocks++ == 0) {
            rest_.example = address;
            rest_.example_size = bytes;
        }
        rest_.bytes += bytes;
        return false;
    }
    if (*slot == 0) {
        std::construct_at(groups_ + size_, leak_group{allocated, 1, bytes, address, bytes});
        std::construct_at(serials_ + size_, serial);
        *slot = static_cast<std::uint32_t>(++size_);
        return true;
    }
    leak_group& group = groups_[*slot - 1];
    ++group.blocks;
    group.bytes += bytes;
    std::uint64_t& lowest = serials_[*slot - 1];
    if (serial < lowest) {
        lowest = serial;
        group.example = address;
        group.example_size = bytes;
    }
    return true;
}

std::span<const leak_group> leak_grouper::finish() noexcept {
    if (groups_ == nullptr) {
        return {&rest_, rest_.blocks != 0 ? std::size_t{1} : 0};
    }
    if (rest_.blocks != 0) {
        std::construct_at(groups_ + size_++, rest_);
        rest_ = {};
    }
    const std::span groups(groups_, size_);
    ranges::sort(groups, ranges::less{}, rank);
    return groups;
}

}  // namespace pmr_debug::detail
