// A block of one resource that is freed into another one: whichever stands on which, it is told as wrong_resource, and
// nothing of it, nor of what lies there, is touched.

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <memory_resource>
#include <string>
#include <vector>

namespace {

using namespace pmr_debug;

struct maker {
    const char* name;
    std::function<std::unique_ptr<std::pmr::memory_resource>(std::pmr::memory_resource*, report_handler*)> make;
};

template <class Resource, class Options>
maker over(const char* name) {
    return {name, [](std::pmr::memory_resource* upstream, report_handler* errors) {
                return std::unique_ptr<std::pmr::memory_resource>(new Resource(upstream, Options{.handler = errors}));
            }};
}

const std::vector<maker>& makers() {
    static const std::vector<maker> all{
        over<tracking_resource, tracking_options>("tracking"),
        over<canary_resource, canary_options>("canary"),
        over<general_purpose_resource, general_purpose_options>("general_purpose"),
        over<end_of_page_resource, end_of_page_options>("end_of_page"),
        over<temp_resource<>, temp_options>("temp"),
    };
    return all;
}

// Effects: frees \p p, a block of \p owner's of 64 bytes, through \p wrong, and expects one wrong_resource.
void expect_refused(collecting_handler& errors, std::pmr::memory_resource& wrong, std::pmr::memory_resource& owner,
                    void* p, const std::string& what) {
    std::memset(p, 0x31, 64);
    errors.clear();
    wrong.deallocate(p, 64, 16);
    EXPECT_EQ(errors.size(), 1u) << what;
    EXPECT_EQ(errors.count(error_kind::wrong_resource), 1u)
        << what << ": " << (errors.size() != 0 ? errors[0].text : "nothing");
    if (errors.size() != 0) {
        EXPECT_EQ(errors[0].facts.owner.address, &owner) << what;
        EXPECT_EQ(errors[0].facts.block.size, 64u) << what;
    }
    for (int i = 0; i < 64; ++i) {
        ASSERT_EQ(static_cast<unsigned char*>(p)[i], 0x31) << what;
    }
    errors.clear();
    owner.deallocate(p, 64, 16);
    EXPECT_EQ(errors.size(), 0u) << what << ": " << (errors.size() != 0 ? errors[0].text : "");
    errors.clear();
}

class others_block : public ::testing::TestWithParam<std::size_t> {
protected:
    const maker& a() const { return makers()[GetParam() / makers().size()]; }
    const maker& b() const { return makers()[GetParam() % makers().size()]; }
    std::string names(const char* how) const { return std::string(a().name) + " given a block of " + b().name + how; }
    collecting_handler errors;
};

TEST_P(others_block, beside) {
    const auto mine = a().make(std::pmr::new_delete_resource(), &errors);
    const auto theirs = b().make(std::pmr::new_delete_resource(), &errors);
    for (int i = 0; i < 3; ++i) {
        void* const kept = mine->allocate(64, 16);
        void* const p = theirs->allocate(64, 16);
        expect_refused(errors, *mine, *theirs, p, names(" beside it"));
        mine->deallocate(kept, 64, 16);
    }
}

// The other one stands on the one that is given the block. A tracking resource hands on its upstream's very blocks, and
// an upstream that gets one back with its own size and alignment takes it.
TEST_P(others_block, above) {
    if (b().name == std::string("tracking")) {
        return;
    }
    const auto mine = a().make(std::pmr::new_delete_resource(), &errors);
    const auto theirs = b().make(mine.get(), &errors);
    std::vector<void*> blocks;
    for (int i = 0; i < 3; ++i) {
        blocks.push_back(theirs->allocate(64, 16));
    }
    for (void* const p : blocks) {
        expect_refused(errors, *mine, *theirs, p, names(" above it"));
    }
}

TEST_P(others_block, below) {
    const auto theirs = b().make(std::pmr::new_delete_resource(), &errors);
    const auto mine = a().make(theirs.get(), &errors);
    for (int i = 0; i < 3; ++i) {
        void* const kept = mine->allocate(64, 16);
        void* const p = theirs->allocate(64, 16);
        expect_refused(errors, *mine, *theirs, p, names(" below it"));
        mine->deallocate(kept, 64, 16);
    }
}

// An arena whose buffer is a block of another resource, and is still empty, or has a first block there.
TEST_P(others_block, the_buffer_of_an_arena) {
    if (GetParam() >= makers().size()) {
        return;  // once for each owner
    }
    for (const bool used : {false, true}) {
        const auto theirs = b().make(std::pmr::new_delete_resource(), &errors);
        void* const buffer = theirs->allocate(64, 16);
        {
            temp_resource<> arena(buffer, 64, {.handler = &errors});
            if (used) {
                EXPECT_EQ(arena.allocate(8, 8), buffer);
            }
            errors.clear();
            arena.deallocate(buffer, 64, 16);
            EXPECT_EQ(errors.count(error_kind::wrong_resource), 1u)
                << b().name << ": " << (errors.size() != 0 ? errors[0].text : "nothing");
            EXPECT_EQ(arena.stats().live_blocks, used ? 1u : 0u);
            arena.release();
        }
        errors.clear();
        theirs->deallocate(buffer, 64, 16);
        EXPECT_EQ(errors.size(), 0u) << b().name;
    }
}

INSTANTIATE_TEST_SUITE_P(all, others_block, ::testing::Range(std::size_t{0}, std::size_t{25}), [](const auto& pair) {
    return std::string(makers()[pair.param / 5].name) + "_and_" + makers()[pair.param % 5].name;
});

// A canary without guards asks its upstream for one byte where it is asked for none.
TEST(others_block_of_no_bytes, the_upstreams_byte_is_its_own) {
    collecting_handler errors;
    tracking_resource below({.handler = &errors});
    basic_canary_resource<policy{.guard_bytes = 0, .fill = false}> canary(&below, {.handler = &errors});
    void* const p = canary.allocate(0, 1);
    canary.deallocate(p, 1, 1);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::size_mismatch) << errors[0].text;
    EXPECT_EQ(canary.stats().live_blocks, 0U);
}

}  // namespace
