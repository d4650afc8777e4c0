// In a chain each leak is listed once, by the topmost resource that knows it, or by one below that speaks first.

#include "metadata/told_leaks.hpp"
#include "support/sample_reports.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <memory_resource>
#include <new>
#include <optional>
#include <string>
#include <vector>

namespace pmr_debug {
namespace {

// How many blocks all the reports together list. In how many groups is the compiler's affair, which may unroll a loop.
std::size_t blocks_in(const collecting_handler& errors) {
    std::size_t n = 0;
    for (std::size_t i = 0; i < errors.size(); ++i) {
        for (const leak_group& group : errors[i].facts.leaks) {
            n += group.blocks;
        }
    }
    return n;
}

// Keeps reports as JSON, as they were when they came.
class json_keeper final : public report_handler {
public:
    action handle(const report& r) noexcept override {
        lines.push_back(nlohmann::json::parse(test_support::json_of(r)));
        return action::carry_on;
    }
    std::vector<nlohmann::json> lines;
};

// Somebody else's, which only counts calls, say.
class somebodys final : public std::pmr::memory_resource {
public:
    explicit somebodys(std::pmr::memory_resource* below) : below_(below) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override { return below_->allocate(bytes, alignment); }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        below_->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    std::pmr::memory_resource* below_;
};

TEST(leaks_in_chains, through_others_resources_each_is_listed_once) {
    collecting_handler errors;
    {
        general_purpose_resource heap({.name = "heap", .handler = &errors});
        tracking_resource lower(&heap, {.name = "lower", .handler = &errors});
        somebodys second(&lower);
        canary_resource guards(&second, {.name = "guards", .handler = &errors});
        somebodys first(&guards);
        tracking_resource scope(&first, {.name = "scope", .handler = &errors});
        for (const std::size_t alignment : {1U, 16U, 64U, 256U}) {
            (void)scope.allocate(100, alignment);
        }
        (void)lower.allocate(3000);
    }
    ASSERT_EQ(errors.size(), 4U);
    EXPECT_EQ(blocks_in(errors), 5U);
    for (const std::size_t i : {1U, 2U, 3U}) {
        EXPECT_EQ(errors[i].facts.listed_blocks, i == 3 ? 5U : 4U) << errors[i].text;
        EXPECT_EQ(errors[i].facts.listed_by.name, i == 3 ? "lower" : "scope");
    }
    EXPECT_EQ(errors[2].facts.leaks.size(), 1U);
    EXPECT_TRUE(errors[3].facts.listed_by_others);
}

// A pool asks for more than a block at a time: what it holds is another leak than the block in it.
TEST(leaks_in_chains, what_a_pool_holds_is_another_leak) {
    collecting_handler errors;
    {
        tracking_resource below({.name = "below", .handler = &errors});
        // Never destroyed.
        alignas(std::pmr::unsynchronized_pool_resource) static std::byte
            place[sizeof(std::pmr::unsynchronized_pool_resource)];
        auto* const pool = ::new (static_cast<void*>(place)) std::pmr::unsynchronized_pool_resource(&below);
        tracking_resource above(pool, {.name = "above", .handler = &errors});
        (void)above.allocate(64);
    }
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_EQ(errors[1].facts.listed_blocks, 0U) << errors[1].text;
    EXPECT_GE(errors[1].facts.leaked_blocks, 1U);
}

TEST(leaks_in_chains, two_list_once) {
    collecting_handler errors;
    {
        std::pmr::monotonic_buffer_resource place;  // takes back what leaks, so that no leak sanitizer sees it
        canary_resource below(&place, {.name = "below", .handler = &errors});
        tracking_resource above(&below, {.name = "above", .handler = &errors});
        (void)above.allocate(100);
        (void)above.allocate(20);
    }
    ASSERT_EQ(errors.size(), 2U);
    const report& first = errors[0].facts;
    EXPECT_EQ(first.leaked_blocks, 2U);
    EXPECT_EQ(first.listed_blocks, 0U);
    EXPECT_EQ(first.listed_by.id, 0U);
    const report& second = errors[1].facts;
    EXPECT_EQ(second.leaked_blocks, 2U);
    EXPECT_EQ(second.leaked_bytes, 120U);
    EXPECT_EQ(second.listed_blocks, 2U);
    EXPECT_EQ(second.listed_bytes, 120U);
    EXPECT_EQ(second.listed_by.name, "above");
    EXPECT_TRUE(second.leaks.empty());
    EXPECT_EQ(errors[1].text,
              "pmr_debug: leak: 120 bytes in 2 blocks of \"below\" were never freed, listed by \"above\" above\n\n");
}

TEST(leaks_in_chains, three_list_once) {
    collecting_handler errors;
    {
        page_resource pages({.handler = &errors});
        general_purpose_resource heap(&pages, {.name = "heap", .handler = &errors});
        canary_resource guards(&heap, {.name = "guards", .handler = &errors});
        tracking_resource scope(&guards, {.name = "scope", .handler = &errors});
        for (const std::size_t alignment : {1U, 16U, 64U, 256U}) {
            (void)scope.allocate(100, alignment);
        }
    }
    ASSERT_EQ(errors.size(), 3U);
    EXPECT_EQ(blocks_in(errors), 4U);
    EXPECT_FALSE(errors[0].facts.leaks.empty());
    for (const std::size_t i : {1U, 2U}) {
        EXPECT_EQ(errors[i].facts.leaked_blocks, 4U);
        EXPECT_EQ(errors[i].facts.listed_blocks, 4U);
        EXPECT_EQ(errors[i].facts.listed_by.name, "scope");
        EXPECT_FALSE(errors[i].facts.listed_by_others);
    }
}

TEST(leaks_in_chains, freed_blocks_are_no_word) {
    collecting_handler errors;
    {
        general_purpose_resource heap({.name = "heap", .handler = &errors});
        canary_resource guards(&heap, {.name = "guards", .handler = &errors});
        tracking_resource scope(&guards, {.name = "scope", .handler = &errors});
        const std::pmr::vector<int> v(100, &scope);
    }
    EXPECT_EQ(errors.size(), 0U);
    {
        std::optional<general_purpose_resource> heap(std::in_place,
                                                     general_purpose_options{.name = "heap", .handler = &errors});
        tracking_resource scope(&*heap, {.name = "scope", .handler = &errors});
        { const std::pmr::vector<int> v(100, &scope); }
        heap.reset();
    }
    EXPECT_EQ(errors.size(), 0U);
}

TEST(leaks_in_chains, each_lists_what_was_allocated_from_it_directly) {
    collecting_handler errors;
    json_keeper json;
    {
        general_purpose_resource heap({.name = "heap", .handler = &json});
        canary_resource guards(&heap, {.name = "guards", .handler = &errors});
        tracking_resource scope(&guards, {.name = "scope", .handler = &errors});
        (void)scope.allocate(10);
        (void)guards.allocate(200);
        (void)heap.allocate(3000);
    }
    ASSERT_EQ(errors.size(), 2U);
    const report& middle = errors[1].facts;
    EXPECT_EQ(middle.leaked_blocks, 2U);
    EXPECT_EQ(middle.listed_blocks, 1U);
    ASSERT_EQ(middle.leaks.size(), 1U);
    EXPECT_EQ(middle.leaks[0].bytes, 200U);
    EXPECT_NE(errors[1].text.find("  … and 10 bytes in 1 more block, listed by \"scope\" above\n"),
              std::string_view::npos)
        << errors[1].text;
    ASSERT_EQ(json.lines.size(), 1U);
    const nlohmann::json& lowest = json.lines[0];
    EXPECT_EQ(lowest["leaked_blocks"], 3);
    EXPECT_EQ(lowest["listed_before"]["blocks"], 2);
    EXPECT_EQ(lowest["listed_before"]["and_others"], true);
    ASSERT_EQ(lowest["leaks"].size(), 1U);
    EXPECT_EQ(lowest["leaks"][0]["bytes"], 3000);
}

TEST(leaks_in_chains, what_one_passes_on_is_listed_once) {
    collecting_handler errors;
    {
        std::pmr::monotonic_buffer_resource place;
        tracking_resource below(&place, {.name = "below", .handler = &errors});
        limit_resource limit(&below, {.limit_bytes = 1000});
        tracking_resource above(&limit, {.name = "above", .handler = &errors});
        (void)above.allocate(100);
    }
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_EQ(errors[1].facts.listed_blocks, 1U);
}

// A list made while the program runs is one, too; a block freed since, and another in its place, were not in it.
TEST(leaks_in_chains, an_address_used_again_is_not_the_same_block) {
    collecting_handler errors;
    {
        std::byte buffer[64];
        std::pmr::monotonic_buffer_resource place(buffer, sizeof buffer, std::pmr::null_memory_resource());
        tracking_resource below(&place, {.name = "below", .handler = &errors});
        void* p = nullptr;
        {
            tracking_resource above(&below, {.name = "above", .handler = &errors});
            p = above.allocate(64, 1);
            EXPECT_EQ(above.report_leaks(), 1U);
            EXPECT_EQ(below.report_leaks(), 1U);
            above.deallocate(p, 64, 1);
        }
        place.release();
        EXPECT_EQ(below.allocate(64, 1), p);
    }
    ASSERT_EQ(errors.size(), 3U);
    EXPECT_EQ(errors[1].facts.listed_blocks, 1U);
    EXPECT_EQ(errors[2].facts.listed_blocks, 0U);
    EXPECT_EQ(errors[2].facts.leaks.size(), 1U);
}

// It is not known above when the one below is asked: so that one says it. What comes later is not in its list.
TEST(leaks_in_chains, who_is_asked_first_lists) {
    collecting_handler errors;
    tracking_resource below({.name = "below", .handler = &errors});
    tracking_resource above(&below, {.name = "above", .handler = &errors});
    void* const p = above.allocate(64);
    EXPECT_EQ(below.report_leaks(), 1U);
    void* const later = above.allocate(10);
    EXPECT_EQ(above.report_leaks(), 2U);
    EXPECT_EQ(below.report_leaks(), 2U);
    ASSERT_EQ(errors.size(), 3U);
    EXPECT_EQ(errors[0].facts.leaks.size(), 1U);
    EXPECT_EQ(errors[0].facts.listed_blocks, 0U);
    EXPECT_EQ(errors[1].facts.listed_blocks, 1U);
    EXPECT_EQ(errors[1].facts.listed_bytes, 64U);
    EXPECT_EQ(errors[1].facts.listed_by.name, "below");
    ASSERT_EQ(errors[1].facts.leaks.size(), 1U);
    EXPECT_EQ(errors[1].facts.leaks[0].bytes, 10U);
    EXPECT_EQ(errors[2].facts.listed_by.name, "above") << "what it has listed itself it lists again";
    EXPECT_EQ(errors[2].facts.listed_bytes, 10U);
    above.deallocate(p, 64);
    above.deallocate(later, 10);
}

TEST(leaks_in_chains, a_lower_one_that_ends_first_lists) {
    collecting_handler errors;
    {
        page_resource pages({.handler = &errors});
        std::optional<general_purpose_resource> low(std::in_place, &pages,
                                                    general_purpose_options{.name = "low", .handler = &errors});
        tracking_resource top(&*low, {.name = "top", .handler = &errors});
        (void)top.allocate(10);
        low.reset();
    }
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_EQ(errors[0].facts.resource.name, "low");
    EXPECT_EQ(errors[0].facts.leaks.size(), 1U);
    EXPECT_EQ(errors[1].facts.leaks.size(), 0U);
    EXPECT_EQ(errors[1].text,
              "pmr_debug: leak: 10 bytes in 1 block of \"top\" were never freed, listed by \"low\" above\n\n");
}

TEST(leaks_in_chains, two_lower_ones_that_end_first_list_what_is_theirs) {
    collecting_handler errors;
    {
        std::pmr::monotonic_buffer_resource place;  // so that the canaries are still there at the end
        std::optional<tracking_resource> heap(std::in_place, &place,
                                              tracking_options{.name = "heap", .handler = &errors});
        somebodys second(&*heap);
        std::optional<canary_resource> guards(std::in_place, &second,
                                              canary_options{.name = "guards", .handler = &errors});
        somebodys first(&*guards);
        tracking_resource scope(&first, {.name = "scope", .handler = &errors});
        for (const std::size_t alignment : {1U, 16U, 64U, 256U}) {
            (void)scope.allocate(100, alignment);
        }
        (void)guards->allocate(200);
        (void)scope.allocate(0, 1);
        heap.reset();
        guards.reset();
    }
    ASSERT_EQ(errors.size(), 3U);
    EXPECT_EQ(blocks_in(errors), 6U);
    for (const std::size_t i : {1U, 2U}) {
        EXPECT_EQ(errors[i].facts.listed_blocks, i == 1 ? 6U : 5U) << errors[i].text;
        EXPECT_EQ(errors[i].facts.listed_by.name, "heap");
        EXPECT_FALSE(errors[i].facts.listed_by_others);
    }
}

// A pool's block is another leak than those in it, in this direction, too.
TEST(leaks_in_chains, what_a_pool_holds_is_not_what_those_above_have) {
    collecting_handler errors;
    tracking_resource below({.name = "below", .handler = &errors});
    std::pmr::unsynchronized_pool_resource pool(&below);
    tracking_resource above(&pool, {.name = "above", .handler = &errors});
    void* const p = above.allocate(64);
    EXPECT_NE(below.report_leaks(), 0U);
    EXPECT_EQ(above.report_leaks(), 1U);
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_EQ(errors[1].facts.listed_blocks, 0U) << errors[1].text;
    above.deallocate(p, 64);
}

// The memory that an arena has from below is none of its leaks.
TEST(leaks_in_chains, what_an_arena_holds_is_listed) {
    collecting_handler errors;
    tracking_resource below({.name = "below", .handler = &errors});
    std::optional<general_purpose_resource> heap(std::in_place, &below, general_purpose_options{.handler = &errors});
    void* const p = heap->allocate(64);
    EXPECT_EQ(heap->report_leaks(), 1U);
    EXPECT_NE(below.report_leaks(), 0U);
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_EQ(errors[1].facts.listed_blocks, 0U);
    heap->deallocate(p, 64);
    heap.reset();
    EXPECT_EQ(errors.size(), 2U);
}

TEST(leaks_in_chains, many_are_listed_once) {
    constexpr std::size_t many = 20'000;
    collecting_handler errors;
    {
        general_purpose_resource heap({.name = "heap", .handler = &errors});
        tracking_resource scope(&heap, {.name = "scope", .handler = &errors});
        for (std::size_t i = 0; i < many; ++i) {
            (void)scope.allocate(16);
        }
        (void)heap.allocate(24);
    }
    ASSERT_EQ(errors.size(), 2U);
    EXPECT_EQ(errors[1].facts.leaked_blocks, many + 1);
    EXPECT_EQ(errors[1].facts.listed_blocks, many);
    EXPECT_EQ(errors[1].facts.leaks.size(), 1U);
}

TEST(told_leaks, keeps_and_forgets) {
    metadata::told_leaks told;
    EXPECT_EQ(told.teller(1, trace_id::none), 0U);
    for (std::uint64_t i = 1; i <= 1000; ++i) {
        told.add(i, static_cast<trace_id>(i), 7);
    }
    told.add(0, trace_id::none, 7);
    told.add(1000, static_cast<trace_id>(1000), 8);
    EXPECT_EQ(told.size(), 1000U);
    metadata::told_leaks copy;
    copy.copy(told);
    told.clear();
    EXPECT_EQ(told.teller(1, static_cast<trace_id>(1)), 0U);
    EXPECT_EQ(copy.teller(1, static_cast<trace_id>(1)), 7U);
    EXPECT_EQ(copy.teller(1000, static_cast<trace_id>(1000)), 8U);
    EXPECT_EQ(copy.teller(1, static_cast<trace_id>(2)), 0U) << "the number stands for another block by now";
    EXPECT_EQ(copy.teller(1001, static_cast<trace_id>(1)), 0U);
}

}  // namespace
}  // namespace pmr_debug
