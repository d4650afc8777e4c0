// check_all_allocation_failures and exception_test_loop: line e of the catalogue.

#include <pmr_debug/testing/allocation_failures.hpp>

#include "support/call_here.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory_resource>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using pmr_debug::error_kind;
using pmr_debug::testing::check_all_allocation_failures;
using pmr_debug::testing::exception_test_loop;
using pmr_debug::testing::failure_test_result;
using pmr_debug::testing::failure_verdict;
using test_support::allocate_here;
using test_support::free_here;
using test_support::trace_contains;

constexpr const char* long_text = "a text that is too long to be kept in the object itself";

std::string text_of(const failure_test_result& r) {
    std::string text;
    pmr_debug::testing::write_text(
        r, [](std::string_view piece, void* context) noexcept { static_cast<std::string*>(context)->append(piece); },
        &text);
    return text;
}

// Takes back at its end what a test leaks, so that a leak checker has nothing to say.
struct forgiving {
    std::pmr::unsynchronized_pool_resource pool;
    pmr_debug::testing::failure_test_options options() {
        pmr_debug::testing::failure_test_options o;
        o.upstream = &pool;
        return o;
    }
};

__attribute__((noinline)) void* second_allocation_here(std::pmr::memory_resource& r) {
    void* const p = r.allocate(24, 8);
    asm volatile("# second_allocation_here" ::: "memory");
    return p;
}

// ---- check_all_allocation_failures ---------------------------------------------------------------------------------

TEST(check_all_allocation_failures, correct_code_passes) {
    int runs = 0;
    const failure_test_result r = check_all_allocation_failures([&](std::pmr::memory_resource& memory) {
        ++runs;
        std::pmr::vector<std::pmr::string> v(&memory);
        v.reserve(2);
        v.emplace_back(long_text);
        v.emplace_back(long_text);
    });
    EXPECT_TRUE(r.ok()) << text_of(r);
    EXPECT_EQ(r.allocations, 3U);
    EXPECT_EQ(runs, 4);
    EXPECT_EQ(r.failed, 0U);
    EXPECT_EQ(text_of(r), "passed\n");
}

TEST(check_all_allocation_failures, code_that_allocates_nothing_passes) {
    const failure_test_result r = check_all_allocation_failures([](std::pmr::memory_resource&) {});
    EXPECT_TRUE(r.ok());
    EXPECT_EQ(r.allocations, 0U);
}

TEST(check_all_allocation_failures, a_leak_on_throw_is_found_with_both_traces_e) {
    forgiving upstream;
    const failure_test_result r = check_all_allocation_failures(
        [](std::pmr::memory_resource& memory) {
            void* const a = allocate_here(memory, 40, 8);
            void* const b = second_allocation_here(memory);  // throws: nobody frees a
            memory.deallocate(b, 24, 8);
            memory.deallocate(a, 40, 8);
        },
        upstream.options());
    EXPECT_EQ(r.verdict, failure_verdict::leak);
    EXPECT_EQ(r.failed, 2U);
    EXPECT_EQ(r.leaked_blocks, 1U);
    EXPECT_EQ(r.leaked_bytes, 40U);
    EXPECT_TRUE(trace_contains(r.where, "second_allocation_here"));
    EXPECT_TRUE(trace_contains(r.leaked, "allocate_here"));
    const std::string text = text_of(r);
    EXPECT_EQ(text.rfind("leak when allocation 2 failed: 40 bytes in 1 block left behind\n", 0), 0U) << text;
    EXPECT_NE(text.find("second_allocation_here"), std::string::npos) << text;
}

TEST(check_all_allocation_failures, a_leak_without_any_failure_is_found_first) {
    forgiving upstream;
    const failure_test_result r = check_all_allocation_failures(
        [](std::pmr::memory_resource& memory) { static_cast<void>(allocate_here(memory, 8, 8)); }, upstream.options());
    EXPECT_EQ(r.verdict, failure_verdict::leak);
    EXPECT_EQ(r.failed, 0U);
    EXPECT_TRUE(trace_contains(r.leaked, "allocate_here"));
}

TEST(check_all_allocation_failures, a_swallowed_failure_is_found_unless_it_may_be_handled_e) {
    const auto code = [](std::pmr::memory_resource& memory) {
        try {
            memory.deallocate(allocate_here(memory, 8, 8), 8, 8);
        } catch (const std::bad_alloc&) {
        }
    };
    const failure_test_result r = check_all_allocation_failures(code);
    EXPECT_EQ(r.verdict, failure_verdict::swallowed);
    EXPECT_EQ(r.failed, 1U);
    EXPECT_TRUE(trace_contains(r.where, "allocate_here"));
    EXPECT_TRUE(check_all_allocation_failures(code, {.may_handle_failures = true}).ok());
}

TEST(check_all_allocation_failures, an_endless_retry_is_ended_e) {
    int tries = 0;
    const failure_test_result r = check_all_allocation_failures(
        [&](std::pmr::memory_resource& memory) {
            for (;;) {
                ++tries;
                try {
                    memory.deallocate(allocate_here(memory, 8, 8), 8, 8);
                    return;
                } catch (const std::bad_alloc&) {
                }
            }
        },
        {.retry_cap = 50});
    EXPECT_EQ(r.verdict, failure_verdict::endless_retry);
    EXPECT_EQ(tries, 1 + 51);
}

TEST(check_all_allocation_failures, code_that_asks_for_less_the_second_time_is_found) {
    int run = 0;
    const failure_test_result r = check_all_allocation_failures([&](std::pmr::memory_resource& memory) {
        if (run++ == 0) {
            memory.deallocate(memory.allocate(8, 8), 8, 8);
        }
    });
    EXPECT_EQ(r.verdict, failure_verdict::nondeterministic);
    EXPECT_EQ(r.failed, 1U);
}

TEST(check_all_allocation_failures, a_wrong_free_on_the_way_out_is_found) {
    const failure_test_result r = check_all_allocation_failures([](std::pmr::memory_resource& memory) {
        void* const a = memory.allocate(40, 8);
        try {
            free_here(memory, second_allocation_here(memory), 24, 8);
        } catch (...) {
            free_here(memory, a, 32, 8);  // the wrong size
            throw;
        }
        free_here(memory, a, 40, 8);
    });
    EXPECT_EQ(r.verdict, failure_verdict::misuse);
    EXPECT_EQ(r.error, error_kind::size_mismatch);
    EXPECT_EQ(r.failed, 2U);
    EXPECT_EQ(text_of(r).rfind("misuse when allocation 2 failed: size_mismatch\n", 0), 0U) << text_of(r);
}

TEST(check_all_allocation_failures, the_cap_ends_it) {
    const failure_test_result r = check_all_allocation_failures(
        [](std::pmr::memory_resource& memory) {
            for (int i = 0; i < 20; ++i) {
                memory.deallocate(memory.allocate(8, 8), 8, 8);
            }
        },
        {.cap = 5});
    EXPECT_EQ(r.verdict, failure_verdict::too_many);
    EXPECT_EQ(r.allocations, 20U);
}

TEST(check_all_allocation_failures, other_exceptions_come_through) {
    EXPECT_THROW(check_all_allocation_failures([](std::pmr::memory_resource&) { throw std::runtime_error("no"); }),
                 std::runtime_error);
}

// ---- exception_test_loop -------------------------------------------------------------------------------------------

using words = std::pmr::vector<std::pmr::string>;

words make_words(std::pmr::memory_resource& memory) {
    words w(&memory);
    w.reserve(1);
    w.emplace_back(long_text);
    return w;
}

bool one_word(const words& w) {
    return w.size() == 1 && w[0] == long_text;
}

TEST(exception_test_loop, the_strong_guarantee_of_push_back_holds) {
    const failure_test_result r = exception_test_loop(
        make_words, [](words& w) { w.emplace_back(long_text); }, one_word);
    EXPECT_TRUE(r.ok()) << text_of(r);
    EXPECT_EQ(r.allocations, 2U) << "the larger array and the string";
}

TEST(exception_test_loop, a_broken_strong_guarantee_is_found_e) {
    const failure_test_result r = exception_test_loop(
        make_words,
        [](words& w) {
            w.clear();
            w.emplace_back(long_text);
        },
        [](const words& w) { return w.size() == 1; });
    EXPECT_EQ(r.verdict, failure_verdict::broken_guarantee);
    EXPECT_EQ(r.failed, 1U);
    EXPECT_NE(r.where, pmr_debug::trace_id::none);
}

struct hoarder {
    std::pmr::memory_resource* memory;
    void grow() {
        void* const a = allocate_here(*memory, 16, 8);
        void* const b = second_allocation_here(*memory);
        memory->deallocate(b, 24, 8);
        memory->deallocate(a, 16, 8);
    }
};

TEST(exception_test_loop, memory_left_behind_by_the_call_is_found_e) {
    forgiving upstream;
    const failure_test_result r =
        exception_test_loop([](std::pmr::memory_resource& m) { return hoarder{&m}; }, [](hoarder& h) { h.grow(); },
                            [](const hoarder&) { return true; }, upstream.options());
    EXPECT_EQ(r.verdict, failure_verdict::leak);
    EXPECT_EQ(r.failed, 2U);
    EXPECT_TRUE(trace_contains(r.leaked, "allocate_here"));
}

TEST(exception_test_loop, swallowing_and_the_cap) {
    EXPECT_EQ(exception_test_loop(
                  make_words,
                  [](words& w) {
                      try {
                          w.emplace_back(long_text);
                      } catch (const std::bad_alloc&) {
                      }
                  },
                  one_word)
                  .verdict,
              failure_verdict::swallowed);
    EXPECT_EQ(exception_test_loop(make_words, [](words& w) { w.resize(100, std::pmr::string(long_text)); }, one_word,
                                  {.cap = 10})
                  .verdict,
              failure_verdict::too_many);
}

TEST(failure_verdict, every_one_has_a_name) {
    for (int i = 0; i <= static_cast<int>(failure_verdict::too_many); ++i) {
        EXPECT_NE(pmr_debug::testing::to_string(static_cast<failure_verdict>(i)), "unknown") << i;
    }
}

}  // namespace
