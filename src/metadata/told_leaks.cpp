#include "metadata/told_leaks.hpp"

#include "os/virtual_memory.hpp"

#include <cstring>

namespace pmr_debug::metadata {

namespace {

constexpr std::size_t first_capacity = 128;

}  // namespace

// Fresh pages are zero: all entries free.
told_leaks::entry* told_leaks::make(std::size_t capacity) noexcept {
    return static_cast<entry*>(os::map(os::round_up(capacity * sizeof(entry), os::page_size()), os::page_size()));
}

told_leaks::entry* told_leaks::find(std::uint64_t serial) const noexcept {
    for (std::size_t at = static_cast<std::size_t>((serial * 0x9E3779B97F4A7C15U) >> 32U);; ++at) {
        entry& e = entries_[at & (capacity_ - 1)];
        if (e.serial == serial || e.serial == 0) {
            return &e;
        }
    }
}

bool told_leaks::grow() noexcept {
    const std::size_t capacity = capacity_ == 0 ? first_capacity : 2 * capacity_;
    entry* const larger = capacity <= 2 * most ? make(capacity) : nullptr;
    if (larger == nullptr) {
        return false;
    }
    told_leaks former;
    former.entries_ = entries_;
    former.capacity_ = capacity_;
    entries_ = larger;
    capacity_ = capacity;
    for (std::size_t i = 0; i < former.capacity_; ++i) {
        if (const entry& e = former.entries_[i]; e.serial != 0) {
            *find(e.serial) = e;
        }
    }
    return true;
}

void told_leaks::add(std::uint64_t serial, trace_id allocated, std::uint64_t teller) noexcept {
    if (serial == 0 || (2 * size_ >= capacity_ && !grow())) {
        return;
    }
    entry& e = *find(serial);
    size_ += e.serial == 0 ? 1 : 0;
    e = {serial, teller, allocated};
}

std::uint64_t told_leaks::teller(std::uint64_t serial, trace_id allocated) const noexcept {
    if (entries_ == nullptr || serial == 0) {
        return 0;
    }
    const entry& e = *find(serial);
    return e.serial != 0 && e.allocated == allocated ? e.teller : 0;
}

void told_leaks::copy(const told_leaks& other) noexcept {
    if (other.entries_ != nullptr && (entries_ = make(other.capacity_)) != nullptr) {
        std::memcpy(static_cast<void*>(entries_), other.entries_, other.capacity_ * sizeof(entry));
        capacity_ = other.capacity_;
        size_ = other.size_;
    }
}

void told_leaks::clear() noexcept {
    if (entries_ != nullptr) {
        os::unmap(entries_, os::round_up(capacity_ * sizeof(entry), os::page_size()));
    }
    entries_ = nullptr;
    capacity_ = 0;
    size_ = 0;
}

}  // namespace pmr_debug::metadata
