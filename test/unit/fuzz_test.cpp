// The fuzzing harness finds broken resources, says what is wrong, and is silent about right ones.

#include <pmr_debug/testing/fuzz.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <memory_resource>
#include <new>
#include <random>
#include <vector>

namespace {

using pmr_debug::testing::fuzz_input;
using pmr_debug::testing::fuzz_options;
using pmr_debug::testing::fuzz_resource;

/// Passes through, but for one mistake.
class broken : public std::pmr::memory_resource {
public:
    enum class mistake { none, keeps, wrong_size, misaligns, overlaps, scribbles, writes_late, throws_other, refuses };
    broken(std::pmr::memory_resource& upstream, mistake m) : upstream_(upstream), mistake_(m) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (++calls_ % 20 == 0) {
            if (mistake_ == mistake::throws_other) {
                throw 1;
            }
            if (mistake_ == mistake::refuses) {
                throw std::bad_alloc();
            }
            if (mistake_ == mistake::overlaps && last_ != nullptr && alignment <= 8 && bytes <= last_bytes_) {
                return last_;
            }
        }
        if (mistake_ == mistake::misaligns && alignment == 64 && bytes < SIZE_MAX / 2) {
            return static_cast<std::byte*>(upstream_.allocate(bytes + 64, 64)) + 8;
        }
        void* const p = upstream_.allocate(bytes, alignment);
        if (mistake_ == mistake::scribbles && last_ != nullptr && last_bytes_ != 0) {
            *static_cast<std::byte*>(last_) ^= std::byte{1};
        }
        last_ = p;
        last_bytes_ = bytes;
        return p;
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        ++frees_;
        last_ = p == last_ ? nullptr : last_;
        if (mistake_ == mistake::keeps && frees_ % 20 == 0) {
            return;
        }
        upstream_.deallocate(p, mistake_ == mistake::wrong_size && frees_ % 20 == 0 ? bytes + 1 : bytes, alignment);
        if (mistake_ == mistake::writes_late && bytes != 0) {
            *static_cast<std::byte*>(p) = std::byte{7};
        }
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    std::pmr::memory_resource& upstream_;
    mistake mistake_;
    std::size_t calls_ = 0;
    std::size_t frees_ = 0;
    void* last_ = nullptr;
    std::size_t last_bytes_ = 0;
};

/// Some dozens of programs, the same each time.
void fuzz(broken::mistake m, const fuzz_options& options = {}) {
    std::minstd_rand numbers(7);
    for (int i = 0; i < 60; ++i) {
        std::vector<std::uint8_t> bytes(300);
        std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::uint8_t>(numbers() >> 8U); });
        bytes[0] = 0;  // the upstream keeps what comes back, so that late writes are seen
        fuzz_resource(
            bytes.data(), bytes.size(), [m](std::pmr::memory_resource& upstream) { return broken(upstream, m); },
            options);
    }
}

TEST(fuzz, right_resources_pass) {
    const std::uint64_t before = pmr_debug::testing::fuzz_operations.load();
    fuzz(broken::mistake::none);
    fuzz(broken::mistake::none, {.second_thread = true});
    EXPECT_GT(pmr_debug::testing::fuzz_operations.load() - before, 1000U);
}

TEST(fuzz, smart_pointers_are_taken) {
    const std::uint8_t bytes[] = {0, 10, 20, 1, 150, 30, 2, 9};
    fuzz_resource(bytes, sizeof bytes, [](std::pmr::memory_resource& upstream) {
        return std::make_unique<broken>(upstream, broken::mistake::none);
    });
}

TEST(fuzz, used_up_bytes_are_zero) {
    const std::uint8_t bytes[] = {255};
    fuzz_input in(bytes, sizeof bytes);
    EXPECT_FALSE(in.empty());
    EXPECT_EQ(in.byte(), 255);
    EXPECT_TRUE(in.empty());
    EXPECT_EQ(in.below(1000), 0U);
    EXPECT_EQ(in.block_size(100), 0U);
    EXPECT_EQ(in.alignment(4096), 1U);
}

TEST(fuzz, sizes_and_alignments_stay_within_bounds) {
    std::minstd_rand numbers(3);
    std::size_t most = 0;
    for (int i = 0; i < 20'000; ++i) {
        const std::uint8_t bytes[] = {static_cast<std::uint8_t>(numbers() >> 8U),
                                      static_cast<std::uint8_t>(numbers() >> 8U)};
        fuzz_input sizes(bytes, sizeof bytes);
        const std::size_t size = sizes.block_size(5000);
        most = std::max(most, size);
        ASSERT_LE(size, 5000U);
        fuzz_input alignments(bytes, sizeof bytes);
        const std::size_t alignment = alignments.alignment(1024);
        ASSERT_LE(alignment, 1024U);
        ASSERT_EQ(alignment & (alignment - 1), 0U);
    }
    EXPECT_GT(most, 4000U);
}

class fuzz_finds : public testing::Test {
protected:
    void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};
using fuzz_finds_death_test = fuzz_finds;

TEST_F(fuzz_finds_death_test, memory_that_is_kept) {
    EXPECT_DEATH(fuzz(broken::mistake::keeps), "FINDING: the resource never gave back");
}
TEST_F(fuzz_finds_death_test, wrong_sizes) {
    EXPECT_DEATH(fuzz(broken::mistake::wrong_size),
                 "FINDING: the resource asked its upstream for .* and gave them back");
}
TEST_F(fuzz_finds_death_test, misaligned_memory) {
    EXPECT_DEATH(fuzz(broken::mistake::misaligns), "FINDING: misaligned memory for .* alignment 64");
}
TEST_F(fuzz_finds_death_test, overlaps) {
    EXPECT_DEATH(fuzz(broken::mistake::overlaps), "FINDING: memory that is in use for");
}
TEST_F(fuzz_finds_death_test, contents_that_change) {
    EXPECT_DEATH(fuzz(broken::mistake::scribbles), "FINDING: byte 0 of block #.* changed while it was in use");
}
TEST_F(fuzz_finds_death_test, late_writes) {
    EXPECT_DEATH(fuzz(broken::mistake::writes_late), "FINDING: the resource wrote, after giving them back, to");
}
TEST_F(fuzz_finds_death_test, other_exceptions) {
    EXPECT_DEATH(fuzz(broken::mistake::throws_other), "FINDING: threw something else than std::bad_alloc");
}
TEST_F(fuzz_finds_death_test, refusals_without_a_reason) {
    EXPECT_DEATH(fuzz(broken::mistake::refuses), "FINDING: refused .* which nothing was in the way of");
}
TEST_F(fuzz_finds_death_test, and_prints_the_steps) {
    EXPECT_DEATH(fuzz(broken::mistake::misaligns), "after these steps:(.|\n)*allocate: .* alignment 64");
}

}  // namespace
