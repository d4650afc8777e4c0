#include "testing/conformance_upstream.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

namespace pmr_debug::testing::detail {

namespace {

constexpr std::byte given_back{0xEE};
/// More than any part asks for in earnest.
constexpr std::size_t too_much = std::size_t{1} << 30;

}  // namespace

recording_upstream::~recording_upstream() {
    for (const auto& [p, b] : blocks_) {
        if (b.live) {
            out_.add(conformance_error::upstream_leak,
                     "never gave back " + in_words(b.bytes, b.alignment) + " of the upstream");
        } else if (!std::all_of(p, p + b.bytes, [](std::byte x) { return x == given_back; })) {
            out_.add(conformance_error::upstream_write_after_free,
                     "wrote to " + in_words(b.bytes, b.alignment) + " of the upstream after giving them back");
        }
        ::operator delete (p, std::align_val_t{b.alignment});
    }
}

void recording_upstream::refuse_after(std::size_t calls, std::size_t how_many) {
    const std::scoped_lock hold(lock_);
    until_refusal_ = calls;
    refusals_left_ = how_many;
}

bool recording_upstream::refused() const {
    const std::scoped_lock hold(lock_);
    return refused_;
}

void* recording_upstream::do_allocate(std::size_t bytes, std::size_t alignment) {
    const std::scoped_lock hold(lock_);
    if (!std::has_single_bit(alignment)) {
        out_.add(conformance_error::upstream_bad_request, "asked the upstream for " + in_words(bytes, alignment));
        throw std::bad_alloc();
    }
    if (refusals_left_ != 0 && until_refusal_-- == 0) {
        --refusals_left_;
        until_refusal_ = 0;
        refused_ = true;
        throw std::bad_alloc();
    }
    if (bytes > too_much || alignment > too_much) {
        throw std::bad_alloc();
    }
    auto* const p = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment}));
    blocks_[p] = {bytes, alignment, true};
    return p;
}

void recording_upstream::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    const std::scoped_lock hold(lock_);
    const auto found = blocks_.find(static_cast<std::byte*>(p));
    if (found == blocks_.end()) {
        out_.add(conformance_error::upstream_unknown,
                 "gave the upstream a pointer that is none of its blocks, as " + in_words(bytes, alignment));
        return;
    }
    block& b = found->second;
    if (!b.live) {
        out_.add(conformance_error::upstream_double_free,
                 "gave " + in_words(b.bytes, b.alignment) + " back to the upstream twice");
        return;
    }
    if (b.bytes != bytes || b.alignment != alignment) {
        out_.add(conformance_error::upstream_mismatch, "asked the upstream for " + in_words(b.bytes, b.alignment) +
                                                           ", gave back " + in_words(bytes, alignment));
    }
    std::memset(p, static_cast<int>(given_back), b.bytes);
    b.live = false;
}

}  // namespace pmr_debug::testing::detail
