#include "resources/leak_listing.hpp"

#include "os/virtual_memory.hpp"

#include <algorithm>
#include <cstring>

namespace pmr_debug::detail {

namespace {

constexpr std::size_t first_bytes = std::size_t{16} << 10;

}  // namespace

leak_listing::leak_listing(const metadata::resource_record* self) noexcept
    : self_(self), stood_on_(metadata::may_be_stood_on(self)) {
    metadata::copy_told(self, told_);
}

leak_listing::~leak_listing() {
    if (below_ != nullptr) {
        os::unmap(below_, below_room_ * sizeof(metadata::block_below));
    }
}

bool leak_listing::is_listed(trace_id allocated, std::size_t bytes, std::uint64_t serial) noexcept {
    const std::uint64_t teller = told_.teller(serial, allocated);
    if (teller == 0) {
        return false;
    }
    several_tellers_ = several_tellers_ || (first_teller_ != 0 && first_teller_ != teller);
    first_teller_ = first_teller_ == 0 ? teller : first_teller_;
    ++listed_blocks_;
    listed_bytes_ += bytes;
    return true;
}

void leak_listing::note(const metadata::block_below& below) noexcept {
    if (below_count_ == below_room_) {
        const std::size_t bytes = below_room_ == 0 ? first_bytes : 2 * below_room_ * sizeof(metadata::block_below);
        void* const larger = below_room_ < metadata::told_leaks::most ? os::map(bytes, os::page_size()) : nullptr;
        if (larger == nullptr) {
            return;  // those below list it once more
        }
        if (below_ != nullptr) {
            std::memcpy(larger, below_, below_count_ * sizeof(metadata::block_below));
            os::unmap(below_, below_room_ * sizeof(metadata::block_below));
        }
        below_ = static_cast<metadata::block_below*>(larger);
        below_room_ = bytes / sizeof(metadata::block_below);
    }
    below_[below_count_++] = below;
}

void leak_listing::add(trace_id allocated, std::size_t bytes, const void* address, std::uint64_t serial,
                       const metadata::block_below& below) noexcept {
    if (is_listed(allocated, bytes, serial)) {
        return;
    }
    groups_.add(allocated, bytes, address, serial);  // refused: it counts into a group of its own
    if (below.base != nullptr) {
        note(below);
    }
    if (stood_on_) {
        const auto from = reinterpret_cast<std::uintptr_t>(address);
        own_.add(serial, allocated, self_->id);
        own_from_ = std::min(own_from_, from);
        own_to_ = std::max(own_to_, from + std::max(bytes, std::size_t{1}));
    }
}

void leak_listing::fill(report& r) noexcept {
    r.leaks = groups_.finish();
    r.leaked_blocks = blocks();
    r.leaked_bytes = groups_.total_bytes() + listed_bytes_;
    r.listed_blocks = listed_blocks_;
    r.listed_bytes = listed_bytes_;
    r.listed_by = metadata::find_by_id(first_teller_);
    r.listed_by_others = several_tellers_;
    if (below_count_ != 0) {
        metadata::tell_below(self_, {below_, below_count_});
    }
    metadata::tell_above(self_, own_, own_from_, own_to_);
}

}  // namespace pmr_debug::detail
