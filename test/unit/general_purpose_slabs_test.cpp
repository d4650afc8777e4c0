// Slabs: units that die out of order, units trapped ahead of their neighbours, and memory that runs out meanwhile.

#include "os/virtual_memory.hpp"
#include "support/general_purpose.hpp"
#include "support/mappings.hpp"
#include "support/sanitizers.hpp"

#include <algorithm>

namespace {

using namespace test_support;
using pmr_debug::general_purpose_options;
using pmr_debug::page_resource;
using pmr_debug::os::guard_tier;

// Slots of 1 KiB with their guard: 64 a unit, 4 units a slab.
constexpr std::size_t size = 1'000;

struct general_purpose_slabs : ::testing::TestWithParam<guard_tier> {
    void SetUp() override { pmr_debug::os::force_guard_tier(GetParam()); }
    void TearDown() override { pmr_debug::os::force_guard_tier(guard_tier::marker); }

    pmr_debug::collecting_handler errors;
    page_resource pages{{.handler = &errors}};
};

// Every second unit dies first and is trapped by itself, as nothing may wait. Then the others die, and with them the
// slab, whose pages move or go.
TEST_P(general_purpose_slabs, with_holes_are_inaccessible_in_the_end) {
    pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors, .quarantine_bytes = 0});
    std::vector<void*> blocks(4'096);
    for (void*& p : blocks) {
        p = heap.allocate(size, 8);
    }
    for (const std::size_t parity : {1U, 0U}) {
        for (std::size_t i = 0; i < blocks.size(); ++i) {
            if (i / 64 % 2 == parity) {
                heap.deallocate(blocks[i], size, 8);
            }
        }
    }
    const pmr_debug::statistics after = heap.stats();
    EXPECT_EQ(after.live_blocks, 0U);
    if (GetParam() != guard_tier::none) {
        EXPECT_GE(after.retired_units, 60U);
        EXPECT_EQ(after.untrapped_units, 0U);
        // The last unit is not used up, and lives.
        for (std::size_t i = 0; i + 128 < blocks.size(); i += 61) {
            EXPECT_TRUE(read_faults(blocks[i])) << i;
        }
    }
    // What comes next works, in pages that were moved with holes in them.
    for (void*& p : blocks) {
        p = heap.allocate(size, 8);
        std::memset(p, 7, size);
    }
    for (void* const p : blocks) {
        EXPECT_TRUE(all_are(p, size, 7));
        heap.deallocate(p, size, 8);
    }
    EXPECT_EQ(heap.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
}

// With addresses for little more than what lives, retired units are used again, those of slabs with holes as well.
// Nothing may move from under a live block.
TEST_P(general_purpose_slabs, keep_live_blocks_in_place_when_addresses_run_out) {
    pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors,
                                                      .address_space_bytes = std::size_t{3} << 20,
                                                      .quarantine_bytes = std::size_t{128} << 10,
                                                      .retired_record_bytes = std::size_t{32} << 10});
    struct block {
        void* p = nullptr;
        std::size_t bytes = 0;
        unsigned char value = 0;
    };
    std::vector<block> live(1'000);
    std::uint64_t s = 0x9E3779B97F4A7C15U;
    constexpr std::size_t rounds = TEST_SANITIZED ? 50'000 : 150'000;
    for (std::size_t i = 0; i < rounds; ++i) {
        s ^= s >> 12U;
        s ^= s << 25U;
        s ^= s >> 27U;
        block& b = live[s % live.size()];
        if (b.p != nullptr) {
            ASSERT_TRUE(all_are(b.p, b.bytes, b.value)) << i;
            heap.deallocate(b.p, b.bytes, 8);
        }
        b.bytes = 1 + (s >> 40U) % 1'500;
        b.value = static_cast<unsigned char>(i);
        b.p = heap.allocate(b.bytes, 8);
        std::memset(b.p, b.value, b.bytes);
    }
    EXPECT_GT(heap.stats().recycled_units, 0U);
    for (const block& b : live) {
        if (b.p != nullptr) {
            ASSERT_TRUE(all_are(b.p, b.bytes, b.value));
            heap.deallocate(b.p, b.bytes, 8);
        }
    }
    EXPECT_EQ(heap.stats().live_blocks, 0U);
    EXPECT_EQ(heap.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
}

// The kernel allows 65 530 mappings. Places that slabs left become one, if no large block lies between them.
TEST(general_purpose_mappings, stay_few_however_many_slabs_and_large_blocks_come_and_go) {
    pmr_debug::general_purpose_resource heap;
    std::vector<void*> blocks(256);
    const auto churn = [&](int rounds) {
        for (int i = 0; i < rounds; ++i) {
            void* const large = heap.allocate(40'000, 8);
            for (void*& p : blocks) {
                p = heap.allocate(size, 8);
            }
            for (void* const p : blocks) {
                heap.deallocate(p, size, 8);
            }
            heap.deallocate(large, 40'000, 8);
        }
    };
    churn(200);
    const std::size_t before = mappings();
    churn(1'000);
    EXPECT_LE(mappings(), before + 200);
    EXPECT_TRUE(heap.ok());
}

std::string tier_name(const ::testing::TestParamInfo<guard_tier>& info) {
    return info.param == guard_tier::marker ? "marker" : info.param == guard_tier::protect ? "protect" : "none";
}
INSTANTIATE_TEST_SUITE_P(tiers, general_purpose_slabs,
                         ::testing::Values(guard_tier::marker, guard_tier::protect, guard_tier::none), tier_name);

}  // namespace
