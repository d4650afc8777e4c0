// The conformance function finds each mistake it is there for.

#include "conformance.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory_resource>
#include <new>
#include <string>
#include <vector>

namespace {

enum class mistake {
    none,
    misaligned,
    same_for_no_bytes,
    hands_out_twice,
    scribbles_on_live_blocks,
    wraps_around,
    throws_something_else,
    stays_broken,
    forgets_a_block,
    wrong_size_upstream,
    writes_after_giving_back,
    equal_to_all,
    loses_a_block_on_refusal,
};

/// A header in front of each block, right but for one mistake.
template <mistake M>
class resource final : public std::pmr::memory_resource {
public:
    explicit resource(std::pmr::memory_resource* upstream) : upstream_(upstream) {}

private:
    static std::size_t header(std::size_t alignment) { return alignment < 16 ? 16 : alignment; }

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (M == mistake::same_for_no_bytes && bytes == 0) {
            return nothing_;
        }
        const std::size_t front = header(alignment);
        if (M == mistake::throws_something_else && bytes > SIZE_MAX - front) {
            throw 1;
        }
        if (broken_ || (M != mistake::wraps_around && (bytes > SIZE_MAX / 4 || front > SIZE_MAX / 4))) {
            broken_ = M == mistake::stays_broken;
            throw std::bad_alloc();
        }
        if (M == mistake::hands_out_twice && last_ != nullptr && ++count_ % 20 == 0 && bytes <= last_bytes_ &&
            alignment <= 16) {
            return last_;
        }
        if (M == mistake::loses_a_block_on_refusal) {
            void* const first = upstream_->allocate(8, 8);
            void* const second = upstream_->allocate(8, 8);  // throws, and the first one is lost
            upstream_->deallocate(first, 8, 8);
            upstream_->deallocate(second, 8, 8);
        }
        std::byte* const raw = static_cast<std::byte*>(upstream_->allocate(bytes + front + 1, front));
        std::byte* const p = raw + front + (M == mistake::misaligned && alignment > 1 ? 1 : 0);
        if (M == mistake::scribbles_on_live_blocks && last_ != nullptr && last_bytes_ > 3) {
            static_cast<unsigned char*>(last_)[3] ^= 0x40;
        }
        last_ = p;
        last_bytes_ = bytes;
        return p;
    }

    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        if (last_ == p) {
            last_ = nullptr;
        }
        if (p == nothing_ || (M == mistake::forgets_a_block && bytes == 0)) {
            return;
        }
        const std::size_t front = header(alignment);
        std::byte* const raw = static_cast<std::byte*>(p) - front - (M == mistake::misaligned && alignment > 1 ? 1 : 0);
        upstream_->deallocate(raw, bytes + (M == mistake::wrong_size_upstream ? 0 : front + 1), front);
        if (M == mistake::writes_after_giving_back) {
            raw[0] = std::byte{1};
        }
    }

    bool do_is_equal(const memory_resource& other) const noexcept override {
        return this == &other || (M == mistake::equal_to_all);
    }

    std::pmr::memory_resource* upstream_;
    alignas(64) std::byte nothing_[1]{};
    void* last_ = nullptr;
    std::size_t last_bytes_ = 0;
    unsigned count_ = 0;
    bool broken_ = false;
};

template <mistake M>
std::string found() {
    std::string all;
    for (const std::string& problem : conformance::check(conformance::builder_of<resource<M>>())) {
        all += problem + "\n";
    }
    return all;
}

void expect(const std::string& found, const char* words) {
    EXPECT_NE(found.find(words), std::string::npos) << "no '" << words << "', only:\n" << found;
}

TEST(ConformanceSuite, FindsNothingWrongWithARightResource) {
    EXPECT_EQ(found<mistake::none>(), "");
}

TEST(ConformanceSuite, FindsEachMistake) {
    expect(found<mistake::misaligned>(), "sizes and alignments: misaligned memory for");
    expect(found<mistake::same_for_no_bytes>(), "zero bytes: memory that is in use for 0 bytes");
    expect(found<mistake::hands_out_twice>(), "memory that is in use for");
    expect(found<mistake::scribbles_on_live_blocks>(), "changed while the block was in use");
    expect(found<mistake::wraps_around>(), "sizes that cannot be: gave memory for 18446744073709551615 bytes");
    expect(found<mistake::throws_something_else>(), "something else than std::bad_alloc");
    expect(found<mistake::stays_broken>(), "refused 24 bytes with alignment 8 after a size that cannot be");
    expect(found<mistake::forgets_a_block>(), "never gave back");
    expect(found<mistake::wrong_size_upstream>(), "gave back 0 bytes");
    expect(found<mistake::writes_after_giving_back>(), "of the upstream after giving it back");
    expect(found<mistake::equal_to_all>(), "equality: is equal to");
    expect(found<mistake::loses_a_block_on_refusal>(), "an upstream that refuses: never gave back 8 bytes");
}

}  // namespace
