// The conformance suite finds each mistake it is there for, and says which it is.

#include <pmr_debug/testing/conformance.hpp>
#include <pmr_debug/testing/conformance_gtest.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using pmr_debug::testing::check_conformance;
using pmr_debug::testing::conformance_error;
using pmr_debug::testing::conformance_finding;
using pmr_debug::testing::conformance_options;
using pmr_debug::testing::conformance_part;
using pmr_debug::testing::in_lines;
using pmr_debug::testing::resource_builder;
using pmr_debug::testing::resource_builder_for;

enum class mistake {
    none,
    misaligned,
    misaligned_when_large,
    null_for_some,
    same_for_no_bytes,
    one_byte_short,
    hands_out_twice,
    scribbles_on_live_blocks,
    refuses_some,
    wraps_around,
    throws_int,
    throws_length_error,
    deallocate_throws,
    stays_broken,
    forgets_a_block,
    wrong_size_upstream,
    wrong_alignment_upstream,
    odd_alignment_upstream,
    another_pointer_upstream,
    gives_back_twice,
    writes_after_giving_back,
    unequal_to_itself,
    equal_to_all,
    equal_to_older_ones,
    equal_to_neighbours,
    equal_until_used,
    equal_by_type,
    loses_a_block_on_refusal,
    refuses_for_ever_after_a_refusal,
    throws_at_construction,
};

/// A header in front of each block, right but for one mistake.
class resource final : public std::pmr::memory_resource {
public:
    resource(mistake m, std::pmr::memory_resource* upstream) : m_(m), upstream_(upstream) {
        if (m_ == mistake::throws_at_construction) {
            throw std::runtime_error("no such luck");
        }
    }

private:
    static std::size_t header(std::size_t alignment) { return alignment < 16 ? 16 : alignment; }
    [[nodiscard]] std::size_t askew(std::size_t alignment) const {
        const bool yes = (m_ == mistake::misaligned && alignment > 1) ||
                         (m_ == mistake::misaligned_when_large && alignment > 100'000);
        return yes ? 1 : 0;
    }

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        ++count_;
        const std::size_t front = header(alignment);
        const bool impossible = bytes > SIZE_MAX / 4 || front > SIZE_MAX / 4;
        if (m_ == mistake::same_for_no_bytes && bytes == 0) {
            return nothing_;
        }
        if (m_ == mistake::throws_int && impossible) {
            throw 1;
        }
        if (m_ == mistake::throws_length_error && impossible) {
            throw std::length_error("too long");
        }
        if (m_ == mistake::refuses_some && bytes == 4097) {
            throw std::bad_alloc();
        }
        if (broken_ || (impossible && m_ != mistake::wraps_around)) {
            broken_ = m_ == mistake::stays_broken || broken_;
            throw std::bad_alloc();
        }
        if (m_ == mistake::null_for_some && bytes == 100) {
            return nullptr;
        }
        if (m_ == mistake::hands_out_twice && last_ != nullptr && count_ % 20 == 0 && bytes <= last_bytes_ &&
            alignment <= 16) {
            return last_;
        }
        if (m_ == mistake::one_byte_short && bytes > 1 && alignment == 1) {
            return from_a_row(bytes);
        }
        if (m_ == mistake::loses_a_block_on_refusal) {
            void* const first = upstream_->allocate(8, 8);
            void* const second = upstream_->allocate(8, 8);  // throws, and the first one is lost
            upstream_->deallocate(first, 8, 8);
            upstream_->deallocate(second, 8, 8);
        }
        std::byte* raw = nullptr;
        try {
            const std::size_t asked = m_ == mistake::odd_alignment_upstream && alignment == 32 ? 3 : front;
            raw = static_cast<std::byte*>(upstream_->allocate(bytes + front + 1, asked));
        } catch (...) {
            broken_ = m_ == mistake::refuses_for_ever_after_a_refusal;
            throw;
        }
        std::byte* const p = raw + front + askew(alignment);
        if (m_ == mistake::scribbles_on_live_blocks && last_ != nullptr && last_bytes_ > 3) {
            static_cast<unsigned char*>(last_)[3] ^= 0x40;
        }
        last_ = p;
        last_bytes_ = bytes;
        return p;
    }

    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        ++count_;
        if (last_ == p) {
            last_ = nullptr;
        }
        const bool in_row = p >= row_.data() && p < row_.data() + row_.size();
        if (p == nothing_ || in_row || (m_ == mistake::forgets_a_block && bytes == 0)) {
            return;
        }
        if (m_ == mistake::another_pointer_upstream && bytes == 7) {
            upstream_->deallocate(p, bytes, alignment);
        }
        const std::size_t front = header(alignment);
        std::byte* const raw = static_cast<std::byte*>(p) - front - askew(alignment);
        const std::size_t given = m_ == mistake::wrong_alignment_upstream ? front * 2 : front;
        upstream_->deallocate(raw, bytes + (m_ == mistake::wrong_size_upstream ? 0 : front + 1), given);
        if (m_ == mistake::gives_back_twice && bytes == 8) {
            upstream_->deallocate(raw, bytes + front + 1, front);
        }
        if (m_ == mistake::writes_after_giving_back) {
            raw[0] = std::byte{1};
        }
        if (m_ == mistake::deallocate_throws && bytes == 9) {
            throw std::runtime_error("not today");
        }
    }

    bool do_is_equal(const memory_resource& other) const noexcept override {
        const auto* const o = dynamic_cast<const resource*>(&other);
        switch (m_) {
            case mistake::unequal_to_itself: return false;
            case mistake::equal_to_all: return true;
            case mistake::equal_to_older_ones: return o != nullptr && o->number_ <= number_;
            case mistake::equal_to_neighbours:
                return o != nullptr && std::max(o->number_, number_) - std::min(o->number_, number_) <= 1;
            case mistake::equal_until_used: return o != nullptr && (o == this || o->count_ == count_);
            case mistake::equal_by_type: return o != nullptr;
            default: return this == &other;
        }
    }

    /// From a row of blocks that are one byte short.
    void* from_a_row(std::size_t bytes) {
        if (used_ + bytes > row_.size()) {
            used_ = 0;
            throw std::bad_alloc();
        }
        std::byte* const p = row_.data() + used_;
        used_ += bytes - 1;
        return p;
    }

    inline static std::atomic<std::uint64_t> last_number_ = 0;

    mistake m_;
    std::pmr::memory_resource* upstream_;
    std::uint64_t number_ = ++last_number_;
    alignas(64) std::byte nothing_[1]{};
    std::array<std::byte, 1000> row_{};
    std::size_t used_ = 0;
    void* last_ = nullptr;
    std::size_t last_bytes_ = 0;
    unsigned count_ = 0;
    bool broken_ = false;
};

resource_builder builder_of(mistake m) {
    return [m](std::pmr::memory_resource& upstream) { return std::make_shared<resource>(m, &upstream); };
}

struct expectation {
    mistake made;
    conformance_part part;
    conformance_error error;
    const char* words;
};

const std::vector<expectation>& expectations() {
    using part = conformance_part;
    using error = conformance_error;
    static const std::vector<expectation> all{
        {mistake::misaligned, part::sizes_and_alignments, error::misaligned, "misaligned memory for 0 bytes with"},
        {mistake::misaligned_when_large, part::over_alignment, error::misaligned, "with alignment 131072"},
        {mistake::null_for_some, part::random_order, error::null_returned, "null for 100 bytes"},
        {mistake::same_for_no_bytes, part::zero_bytes, error::overlap, "memory that is in use for 0 bytes"},
        {mistake::one_byte_short, part::sizes_and_alignments, error::overlap, "memory that is in use for"},
        {mistake::one_byte_short, part::sizes_and_alignments, error::contents_changed, "changed while the block"},
        {mistake::hands_out_twice, part::random_order, error::overlap, "memory that is in use for"},
        {mistake::scribbles_on_live_blocks, part::random_order, error::contents_changed, "while the block was in use"},
        {mistake::refuses_some, part::sizes_and_alignments, error::refused, "refused 4097 bytes with alignment 1"},
        {mistake::wraps_around, part::impossible_sizes, error::impossible_granted, "18446744073709551615 bytes"},
        {mistake::throws_int, part::impossible_sizes, error::wrong_exception, "something else than std::bad_alloc"},
        {mistake::throws_length_error, part::impossible_sizes, error::wrong_exception, "something else than"},
        {mistake::deallocate_throws, part::sizes_and_alignments, error::wrong_exception,
         "deallocate threw for 9 bytes"},
        {mistake::stays_broken, part::impossible_sizes, error::refused, "refused 24 bytes with alignment 8"},
        {mistake::forgets_a_block, part::sizes_and_alignments, error::upstream_leak, "never gave back 17 bytes"},
        {mistake::wrong_size_upstream, part::sizes_and_alignments, error::upstream_mismatch, "gave back"},
        {mistake::wrong_alignment_upstream, part::random_order, error::upstream_mismatch, "with alignment 32"},
        {mistake::odd_alignment_upstream, part::random_order, error::upstream_bad_request, "with alignment 3"},
        {mistake::another_pointer_upstream, part::sizes_and_alignments, error::upstream_unknown, "as 7 bytes"},
        {mistake::gives_back_twice, part::zero_bytes, error::upstream_double_free, "25 bytes with alignment 16 back"},
        {mistake::writes_after_giving_back, part::zero_bytes, error::upstream_write_after_free, "wrote to"},
        {mistake::unequal_to_itself, part::equality, error::not_reflexive, "not equal to itself"},
        {mistake::equal_to_all, part::equality, error::not_symmetric, "another one that is not equal to it"},
        {mistake::equal_to_older_ones, part::equality, error::not_symmetric, "another one that is not equal to it"},
        {mistake::equal_to_neighbours, part::equality, error::not_transitive, "to a second, that to a third"},
        {mistake::equal_until_used, part::equality, error::equality_changed, "changed when memory was allocated"},
        {mistake::equal_by_type, part::equality, error::not_interchangeable, "none of its blocks"},
        {mistake::loses_a_block_on_refusal, part::refusing_upstream, error::upstream_leak, "never gave back 8 bytes"},
        {mistake::refuses_for_ever_after_a_refusal, part::refusing_upstream, error::refused, "refused 8 requests"},
        {mistake::throws_at_construction, part::zero_bytes, error::not_built, "the builder threw: no such luck"},
    };
    return all;
}

const conformance_finding* find(const std::vector<conformance_finding>& found, conformance_part part,
                                conformance_error error) {
    const auto f = std::find_if(found.begin(), found.end(),
                                [&](const conformance_finding& x) { return x.part == part && x.error == error; });
    return f == found.end() ? nullptr : &*f;
}

TEST(BrokenResources, ARightOneIsLeftAlone) {
    EXPECT_EQ(in_lines(check_conformance(builder_of(mistake::none))), "");
}

TEST(BrokenResources, EachMistakeIsFound) {
    for (const expectation& e : expectations()) {
        const auto found = check_conformance(builder_of(e.made));
        const conformance_finding* const f = find(found, e.part, e.error);
        ASSERT_NE(f, nullptr) << "mistake " << static_cast<int>(e.made) << ": no " << to_string(e.error) << " in "
                              << to_string(e.part) << ", but\n"
                              << in_lines(found);
        EXPECT_NE(f->text.find(e.words), std::string::npos) << f->text;
        EXPECT_EQ(f->text.find(to_string(e.part)), 0U) << f->text;
        EXPECT_GE(f->count, 1U);
    }
}

TEST(BrokenResources, AnotherSeedFindsThemToo) {
    for (const expectation& e : expectations()) {
        EXPECT_NE(find(check_conformance(builder_of(e.made), {.seed = 77}), e.part, e.error), nullptr)
            << static_cast<int>(e.made);
    }
}

TEST(BrokenResources, EveryKindOfMistakeIsTried) {
    std::set<conformance_error> tried{conformance_error::upstream_unused};  // below
    for (const expectation& e : expectations()) {
        tried.insert(e.error);
    }
    for (int i = 0; i <= static_cast<int>(conformance_error::upstream_unused); ++i) {
        EXPECT_EQ(tried.count(static_cast<conformance_error>(i)), 1U) << to_string(static_cast<conformance_error>(i));
    }
}

TEST(BrokenResources, MistakesAreCountedNotListed) {
    const auto found = check_conformance(builder_of(mistake::wrong_size_upstream));
    const conformance_finding* const f =
        find(found, conformance_part::random_order, conformance_error::upstream_mismatch);
    ASSERT_NE(f, nullptr);
    EXPECT_GT(f->count, 500U);
    std::set<std::pair<conformance_part, conformance_error>> kinds;
    for (const conformance_finding& each : found) {
        EXPECT_TRUE(kinds.insert({each.part, each.error}).second) << each.text;
    }
}

TEST(BrokenResources, PartsCanBeLeftOut) {
    const conformance_options o{.skip = {conformance_part::equality}};
    EXPECT_EQ(in_lines(check_conformance(builder_of(mistake::unequal_to_itself), o)), "");
    const conformance_options only{.skip = pmr_debug::testing::conformance_parts::all_but(conformance_part::equality)};
    EXPECT_EQ(in_lines(check_conformance(builder_of(mistake::wraps_around), only)), "");
    EXPECT_EQ(check_conformance(builder_of(mistake::unequal_to_itself), only).size(), 1U);
}

TEST(BrokenResources, SizesAndAlignmentsCanBeLimited) {
    EXPECT_EQ(in_lines(check_conformance(builder_of(mistake::refuses_some), {.largest_block = 4096})), "");
    EXPECT_EQ(in_lines(check_conformance(builder_of(mistake::misaligned_when_large), {.over_alignment = 65536})), "");
}

TEST(BrokenResources, ARefusalIsNoMistakeIfSoSaid) {
    EXPECT_EQ(in_lines(check_conformance(builder_of(mistake::refuses_some), {.may_refuse = true})), "");
    EXPECT_NE(in_lines(check_conformance(builder_of(mistake::misaligned), {.may_refuse = true})), "");
}

TEST(BrokenResources, ABuilderThatMakesNothingIsFoundEverywhere) {
    const auto found = check_conformance([](std::pmr::memory_resource&) { return nullptr; });
    for (const conformance_part part :
         {conformance_part::zero_bytes, conformance_part::equality, conformance_part::refusing_upstream}) {
        const conformance_finding* const f = find(found, part, conformance_error::not_built);
        ASSERT_NE(f, nullptr) << to_string(part);
        EXPECT_NE(f->text.find("made nothing"), std::string::npos) << f->text;
    }
}

TEST(BrokenResources, AnUpstreamThatIsNotUsedIsSaid) {
    const auto found = check_conformance(resource_builder_for(*std::pmr::new_delete_resource()),
                                         {.skip = {conformance_part::impossible_sizes}});
    ASSERT_EQ(found.size(), 1U) << in_lines(found);
    EXPECT_EQ(found[0].error, conformance_error::upstream_unused);
}

// ---- threads --------------------------------------------------------------------------------------------------------

/// Slots of a fixed size, found by a look and taken later, as somebody does who has no lock. Atomic words, so that it
/// is wrong in its logic only.
class forgetful_slots final : public std::pmr::memory_resource {
public:
    explicit forgetful_slots(bool locked) : locked_(locked) {}

private:
    static constexpr std::size_t slot_bytes = 256;

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (bytes > slot_bytes || alignment > 64) {
            throw std::bad_alloc();
        }
        for (std::size_t i = 0; i < taken_.size(); ++i) {
            if (locked_) {
                if (!taken_[i].exchange(true)) {
                    return memory_.data() + i * slot_bytes;
                }
            } else if (!taken_[i].load()) {
                std::this_thread::yield();
                taken_[i].store(true);
                return memory_.data() + i * slot_bytes;
            }
        }
        throw std::bad_alloc();
    }
    void do_deallocate(void* p, std::size_t, std::size_t) override {
        taken_[static_cast<std::size_t>(static_cast<std::byte*>(p) - memory_.data()) / slot_bytes].store(false);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    bool locked_;
    std::array<std::atomic<bool>, 4096> taken_{};
    alignas(64) std::array<std::byte, 4096 * slot_bytes> memory_{};
};

std::vector<conformance_finding> with_threads(bool locked) {
    const conformance_options o{.largest_block = 256,
                                .largest_alignment = 64,
                                .threads = 4,
                                .skip = pmr_debug::testing::conformance_parts::all_but(conformance_part::threads)};
    return check_conformance([=](std::pmr::memory_resource&) { return std::make_shared<forgetful_slots>(locked); }, o);
}

TEST(BrokenResources, OneThatIsNotMadeForThreadsIsFound) {
    EXPECT_EQ(in_lines(with_threads(true)), "");
#if !defined(__has_feature)
#define __has_feature(x) 0
#endif
#if !__has_feature(thread_sanitizer)  // two writers of one block are a data race, which is the point
    const auto found = with_threads(false);
    EXPECT_TRUE(find(found, conformance_part::threads, conformance_error::contents_changed) != nullptr ||
                find(found, conformance_part::threads, conformance_error::overlap) != nullptr)
        << in_lines(found);
#endif
}

TEST(BrokenResources, NamesOfPartsAndErrorsAreUnique) {
    std::set<std::string_view> names;
    for (std::size_t i = 0; i < pmr_debug::testing::conformance_part_count; ++i) {
        names.insert(to_string(static_cast<conformance_part>(i)));
    }
    EXPECT_EQ(names.size(), pmr_debug::testing::conformance_part_count);
    for (int i = 0; i <= static_cast<int>(conformance_error::upstream_unused); ++i) {
        EXPECT_TRUE(names.insert(to_string(static_cast<conformance_error>(i))).second) << i;
    }
    EXPECT_EQ(names.count("unknown"), 0U);
    EXPECT_EQ(to_string(static_cast<conformance_part>(99)), "unknown");
    EXPECT_EQ(to_string(static_cast<conformance_error>(99)), "unknown");
}

}  // namespace
