// One walk through the general-purpose resource: the silent path and the three traces of a double free.

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>

#include <gtest/gtest.h>

#include <memory_resource>
#include <string>
#include <unordered_map>

namespace {

TEST(GeneralPurposeSmoke, ContainersRunSilently) {
    pmr_debug::collecting_handler errors;
    pmr_debug::page_resource pages({.handler = &errors});
    {
        pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors});
        std::pmr::unordered_map<std::pmr::string, int> words(&heap);
        for (int i = 0; i < 20'000; ++i) {
            words[std::pmr::string(std::to_string(i % 5'000) + " and a tail that is long enough for the heap",
                                   &heap)]++;
        }
        EXPECT_EQ(words.size(), 5'000U);
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST(GeneralPurposeSmoke, DoubleFreeHasThreeTraces) {
    pmr_debug::collecting_handler errors;
    pmr_debug::page_resource pages({.handler = &errors});
    pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors});
    void* const p = heap.allocate(64, 8);
    heap.deallocate(p, 64, 8);
    heap.deallocate(p, 64, 8);
    ASSERT_EQ(errors.count(pmr_debug::error_kind::double_free), 1U);
    const pmr_debug::report& r = errors.back().facts;
    EXPECT_EQ(r.pointer, p);
    EXPECT_EQ(r.block.size, 64U);
    EXPECT_NE(r.here, pmr_debug::trace_id::none);
    EXPECT_NE(r.allocated, pmr_debug::trace_id::none);
    EXPECT_NE(r.freed, pmr_debug::trace_id::none);
}

}  // namespace
