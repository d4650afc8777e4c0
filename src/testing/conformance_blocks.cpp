#include "testing/conformance_blocks.hpp"

#include "resources/upstream.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>

namespace pmr_debug::testing::detail {

namespace {

/// Calls \p use(offset, length, eight bytes) for the contents of a block, piece by piece, until it returns false.
template <class Use>
bool for_contents(std::size_t bytes, std::uint64_t seed, Use use) {
    for (std::size_t i = 0; i < bytes; i += sizeof(std::uint64_t)) {
        const std::uint64_t piece = mixed(seed + i);
        if (!use(i, std::min(bytes - i, sizeof piece), &piece)) {
            return false;
        }
    }
    return true;
}

}  // namespace

bool held_blocks::try_take(std::size_t bytes, std::size_t alignment) {
    void* p = nullptr;
    try {
        p = pmr_debug::detail::ask_upstream(r_, bytes, alignment);
    } catch (const std::bad_alloc&) {
        return false;
    } catch (...) {
        out_.add(conformance_error::wrong_exception,
                 "threw something else than std::bad_alloc for " + in_words(bytes, alignment));
        return true;
    }
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    if (at == 0) {
        out_.add(conformance_error::null_returned, "null for " + in_words(bytes, alignment));
        return true;
    }
    if (at % alignment != 0) {
        out_.add(conformance_error::misaligned, "misaligned memory for " + in_words(bytes, alignment));
    }
    if (!is_apart(at, bytes)) {
        out_.add(conformance_error::overlap, "memory that is in use for " + in_words(bytes, alignment));
    }
    const std::uint64_t seed = mixed(next_seed_++);
    auto* const to = static_cast<std::byte*>(p);
    for_contents(bytes, seed, [&](std::size_t offset, std::size_t length, const void* piece) {
        std::memcpy(to + offset, piece, length);
        return true;
    });
    blocks_.push_back({p, bytes, alignment, seed});
    by_address_[at] = bytes;
    return true;
}

void held_blocks::take(std::size_t bytes, std::size_t alignment) {
    if (!try_take(bytes, alignment) && !options_.may_refuse) {
        out_.add(conformance_error::refused, "refused " + in_words(bytes, alignment));
    }
}

void held_blocks::free_one(std::size_t index, std::pmr::memory_resource& by) {
    const block b = blocks_[index];
    blocks_[index] = blocks_.back();
    blocks_.pop_back();
    by_address_.erase(reinterpret_cast<std::uintptr_t>(b.p));
    const auto* const from = static_cast<const std::byte*>(b.p);
    const auto is_as_written = [&](std::size_t offset, std::size_t length, const void* piece) {
        return std::memcmp(from + offset, piece, length) == 0;
    };
    if (!for_contents(b.bytes, b.seed, is_as_written)) {
        out_.add(conformance_error::contents_changed,
                 "the contents of " + in_words(b.bytes, b.alignment) + " changed while the block was in use");
    }
    try {
        by.deallocate(b.p, b.bytes, b.alignment);
    } catch (...) {
        out_.add(conformance_error::wrong_exception, "deallocate threw for " + in_words(b.bytes, b.alignment));
    }
}

void held_blocks::free_all() {
    while (!blocks_.empty()) {
        free_one(blocks_.size() - 1);
    }
}

void held_blocks::free_all(random_numbers& random) {
    while (!blocks_.empty()) {
        free_one(random.below(blocks_.size()));
    }
}

void held_blocks::expect_apart(const held_blocks& other) {
    for (const block& b : blocks_) {
        if (!other.is_apart(reinterpret_cast<std::uintptr_t>(b.p), b.bytes)) {
            out_.add(conformance_error::overlap, "memory of another thread for " + in_words(b.bytes, b.alignment));
        }
    }
}

bool held_blocks::is_apart(std::uintptr_t at, std::size_t bytes) const {
    const auto above = by_address_.lower_bound(at);
    if (above != by_address_.end() && (above->first == at || above->first - at < bytes)) {
        return false;
    }
    if (above == by_address_.begin()) {
        return true;
    }
    const auto below = std::prev(above);
    return at - below->first >= below->second;
}

}  // namespace pmr_debug::testing::detail
