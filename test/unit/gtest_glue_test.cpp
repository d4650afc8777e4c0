// resource_monitor, is_equal_audit, and the GoogleTest glue; failures are caught by gtest-spi.

#include <pmr_debug/testing/gtest.hpp>
#include <pmr_debug/testing/is_equal_audit.hpp>

#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/limit_resource.hpp>

#include "support/call_here.hpp"
#include "support/forwarding_resource.hpp"
#include "support/odd_calls.hpp"
#include "support/trace_contains.hpp"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <memory_resource>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::tracking_resource;
using pmr_debug::testing::audit_is_equal;
using pmr_debug::testing::is_equal_findings;
using pmr_debug::testing::resource_monitor;

// ---- resource_monitor ----------------------------------------------------------------------------------------------

TEST(resource_monitor, shows_differences_and_nests) {
    tracking_resource memory({.name = "memory"});
    void* const early = memory.allocate(100, 8);
    const resource_monitor outer(memory);
    EXPECT_TRUE(outer.untouched());
    void* const a = memory.allocate(30, 8);
    {
        resource_monitor inner(memory);
        memory.deallocate(memory.allocate(50, 8), 50, 8);
        EXPECT_TRUE(inner.live_same());
        EXPECT_FALSE(inner.untouched());
        EXPECT_EQ(inner.allocations(), 1);
        EXPECT_EQ(inner.deallocations(), 1);
        EXPECT_EQ(inner.total_bytes(), 50);
        EXPECT_EQ(inner.peak_bytes(), 50);
        EXPECT_EQ(inner.peak_blocks(), 1);
        inner.reset();
        memory.deallocate(memory.allocate(10, 8), 10, 8);
        EXPECT_TRUE(inner.peak_same()) << "there was more in use before";
    }
    memory.deallocate(early, 100, 8);
    EXPECT_EQ(outer.live_bytes(), 30 - 100);
    EXPECT_EQ(outer.live_blocks(), 0);
    EXPECT_FALSE(outer.live_same());
    EXPECT_EQ(outer.allocations(), 3);
    memory.deallocate(a, 30, 8);
}

// Line 44: moving across resources copies without a word.
TEST(resource_monitor, shows_the_copy_behind_a_move_44) {
    tracking_resource one({.name = "one"});
    tracking_resource two({.name = "two"});
    std::pmr::vector<int> keep(&one);
    std::pmr::vector<int> elsewhere({1, 2, 3}, &two);
    const resource_monitor since(one);
    keep = std::move(elsewhere);
    EXPECT_EQ(since.allocations(), 1) << "a copy";
    std::pmr::vector<int> here({1, 2, 3}, &one);
    EXPECT_ALLOCATIONS(one, 0, keep = std::move(here));
}

TEST(resource_monitor, watches_every_resource_with_counters) {
    pmr_debug::general_purpose_resource heap({.name = "heap"});
    pmr_debug::limit_resource limit({.limit_bytes = 100});
    const resource_monitor of_heap(heap);
    const resource_monitor of_limit(limit);
    heap.deallocate(heap.allocate(10, 8), 10, 8);
    limit.deallocate(limit.allocate(10, 8), 10, 8);
    EXPECT_EQ(of_heap.allocations(), 1);
    EXPECT_EQ(of_limit.allocations(), 1);
}

// ---- is_equal_audit ------------------------------------------------------------------------------------------------

// Line 25: says it equals any other of its type, though each has an upstream of its own.
class all_alike final : public test_support::forwarding_resource {
public:
    using forwarding_resource::forwarding_resource;

private:
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return dynamic_cast<const all_alike*>(&other) != nullptr;
    }
};

// Not even equal to itself, and now and then to anybody.
class fickle final : public std::pmr::memory_resource {
public:
    explicit fickle(std::pmr::memory_resource*) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return &other != this && (++asked_ % 2 != 0 || &other == std::pmr::new_delete_resource());
    }
    mutable unsigned asked_ = 0;
};

// Without state of its own: equal to its kind, and rightly so.
class shared_heap final : public std::pmr::memory_resource {
public:
    explicit shared_heap(std::pmr::memory_resource*) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return dynamic_cast<const shared_heap*>(&other) != nullptr;
    }
};

TEST(is_equal_audit, equal_with_state_of_their_own_is_found_25) {
    const is_equal_findings f = audit_is_equal<all_alike>();
    EXPECT_FALSE(f.separate);
    EXPECT_TRUE(f.reflexive && f.symmetric && f.stable && f.knows_strangers);
    EXPECT_FALSE(f.ok());
}

TEST(is_equal_audit, broken_laws_are_found) {
    const is_equal_findings f = audit_is_equal<fickle>();
    EXPECT_FALSE(f.reflexive);
    EXPECT_FALSE(f.stable);
    EXPECT_FALSE(f.knows_strangers);
    all_alike one(std::pmr::new_delete_resource());
    fickle two(nullptr);
    EXPECT_FALSE(audit_is_equal(one, two).symmetric);
}

TEST(is_equal_audit, sound_ones_pass) {
    EXPECT_TRUE(audit_is_equal<std::pmr::unsynchronized_pool_resource>().ok());
    EXPECT_TRUE(audit_is_equal<std::pmr::monotonic_buffer_resource>().ok());
    EXPECT_TRUE(audit_is_equal<tracking_resource>().ok());
    EXPECT_TRUE(audit_is_equal<pmr_debug::general_purpose_resource>().ok());
    EXPECT_TRUE(audit_is_equal<pmr_debug::limit_resource>().ok());
    EXPECT_TRUE(audit_is_equal<shared_heap>().ok());
}

// ---- Macros --------------------------------------------------------------------------------------------------------

// EXPECT_NONFATAL_FAILURE runs its statement in a static context.
collecting_handler errors;
tracking_resource memory({.name = "memory", .handler = &errors});

TEST(gtest_glue, expect_no_leaks) {
    EXPECT_NO_LEAKS(memory);
    void* const p = memory.allocate(8, 8);
    EXPECT_NONFATAL_FAILURE(EXPECT_NO_LEAKS(memory), "memory has 8 bytes in 1 block in use");
    EXPECT_EQ(errors.count(error_kind::leak), 1U) << "the report has the trace";
    memory.deallocate(p, 8, 8);
    EXPECT_NO_LEAKS(memory);
    errors.clear();
}

TEST(gtest_glue, expect_allocations) {
    EXPECT_ALLOCATIONS(memory, 2, test_support::free_here(memory, memory.allocate(8, 8), 8, 8);
                       test_support::free_here(memory, memory.allocate(8, 8), 8, 8));
    EXPECT_ALLOCATIONS(memory, 0, );
    EXPECT_NONFATAL_FAILURE(EXPECT_ALLOCATIONS(memory, 0, test_support::free_here(memory, memory.allocate(8, 8), 8, 8)),
                            "memory made 1 allocations of 8 bytes together, expected 0");
}

TEST(gtest_glue, expect_report) {
    EXPECT_NONFATAL_FAILURE(EXPECT_REPORT(errors, error_kind::null_free), "errors knows of no null_free, nor of any");
    test_support::free_null(memory, 8, 8);
    EXPECT_REPORT(errors, error_kind::null_free);
    EXPECT_REPORT(memory, error_kind::null_free);
    EXPECT_NONFATAL_FAILURE(EXPECT_REPORT(memory, error_kind::double_free), "null_free: 1");
    EXPECT_NONFATAL_FAILURE(EXPECT_REPORT(errors, error_kind::double_free), "a null pointer was deallocated");
    errors.clear();
}

TEST(gtest_glue, results_print_themselves) {
    EXPECT_EQ(::testing::PrintToString(error_kind::double_free), "double_free");
    EXPECT_EQ(::testing::PrintToString(pmr_debug::testing::failure_test_result{}), "passed\n");
}

// ---- The listener --------------------------------------------------------------------------------------------------

tracking_resource watched({.name = "watched", .handler = &errors});
void* leaked = nullptr;

// Runs this program again for the tests that are meant to fail.
std::string run_for_real(const std::string& filter) {
    const std::string program = ::testing::internal::GetArgvs()[0];
    const std::string command = program + " --gtest_also_run_disabled_tests --gtest_filter=" + filter + " 2>&1";
    std::string out;
    if (std::FILE* const pipe = ::popen(command.c_str(), "r"); pipe != nullptr) {
        char buffer[512];
        while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) {
            out += buffer;
        }
        ::pclose(pipe);
    }
    return out;
}

// Before main: as in a program's own main().
const bool installed = [] {
    pmr_debug::testing::leak_listener::install().watch(watched, "watched");
    return true;
}();

TEST(DISABLED_to_be_watched, a_leaks) {
    leaked = watched.allocate(24, 8);
}
TEST(DISABLED_to_be_watched, b_is_innocent) {
    watched.deallocate(watched.allocate(24, 8), 24, 8);
}
TEST(DISABLED_to_be_watched, c_frees_what_another_left) {
    watched.deallocate(leaked, 24, 8);
}

TEST(leak_listener, fails_the_test_that_leaks_and_no_other) {
    ASSERT_TRUE(installed);
    const std::string out = run_for_real("DISABLED_to_be_watched.*");
    EXPECT_NE(out.find("DISABLED_to_be_watched.a_leaks leaked 24 bytes in 1 blocks of watched"), std::string::npos)
        << out;
    EXPECT_NE(out.find("[  FAILED  ] DISABLED_to_be_watched.a_leaks"), std::string::npos) << out;
    EXPECT_NE(out.find("[       OK ] DISABLED_to_be_watched.b_is_innocent"), std::string::npos) << out;
    EXPECT_NE(out.find("[       OK ] DISABLED_to_be_watched.c_frees"), std::string::npos) << out;
    EXPECT_NE(out.find("1 FAILED TEST"), std::string::npos) << out;
}

// ---- The fixture ---------------------------------------------------------------------------------------------------

class with_memory : public pmr_debug::testing::memory_test {};

TEST_F(with_memory, object_and_default_are_apart) {
    EXPECT_EQ(std::pmr::get_default_resource(), &standard);
    const std::pmr::string s(100, 'x', &object);
    EXPECT_EQ(object.stats().live_blocks, 1U);
    expect_default_untouched();
}

TEST_F(with_memory, errors_may_be_expected) {
    expect_errors();
    test_support::free_null(object, 8, 8);
    EXPECT_REPORT(errors, error_kind::null_free);
}

class DISABLED_with_memory : public pmr_debug::testing::memory_test {};

TEST_F(DISABLED_with_memory, leaks_from_the_object) {
    static_cast<void>(object.allocate(8, 8));
}
TEST_F(DISABLED_with_memory, reports_an_error) {
    test_support::free_null(object, 8, 8);
}
TEST_F(DISABLED_with_memory, uses_the_default) {
    const std::pmr::string s(100, 'x');
    expect_default_untouched();
}
TEST_F(DISABLED_with_memory, is_innocent) {
    const std::pmr::string s(100, 'x', &object);
}

TEST_F(with_memory, fails_what_leaks_errs_or_uses_the_default) {
    const std::string out = run_for_real("DISABLED_with_memory.*");
    EXPECT_NE(out.find("object has 8 bytes in 1 block in use"), std::string::npos) << out;
    EXPECT_NE(out.find("a null pointer was deallocated"), std::string::npos) << out;
    EXPECT_NE(out.find("allocated from the default resource"), std::string::npos) << out;
    EXPECT_NE(out.find("[       OK ] DISABLED_with_memory.is_innocent"), std::string::npos) << out;
    EXPECT_NE(out.find("3 FAILED TESTS"), std::string::npos) << out;
}

class with_forbidden_default : public pmr_debug::testing::forbidden_default_test {};

TEST_F(with_forbidden_default, object_is_for_use) {
    EXPECT_NE(std::pmr::get_default_resource(), &standard);
    EXPECT_TRUE(std::pmr::get_default_resource()->is_equal(standard));
    const std::pmr::string s(100, 'x', &object);
    EXPECT_EQ(object.stats().live_blocks, 1U);
    EXPECT_EQ(forbidden.uses(), 0U);
}

TEST_F(with_forbidden_default, uses_are_reported_and_carried_out) {
    expect_errors();
    void* const p = test_support::allocate_here(*std::pmr::get_default_resource(), 100, 8);
    EXPECT_EQ(standard.stats().live_bytes, 100U);
    test_support::free_here(*std::pmr::get_default_resource(), p, 100, 8);
    EXPECT_EQ(forbidden.uses(), 1U);
    ASSERT_EQ(errors.count(error_kind::default_resource_used), 1U);
    EXPECT_EQ(errors[0].facts.given_size, 100U);
    EXPECT_TRUE(test_support::trace_contains(errors[0].facts.here, "allocate_here"));
}

TEST_F(with_forbidden_default, a_guard_allows_it_for_a_scope) {
    std::optional<std::pmr::vector<int>> made;
    {
        const pmr_debug::testing::default_resource_guard allowed(&standard, &errors);
        made.emplace(100, 1);
    }
    EXPECT_EQ(made->size(), 100U);
    EXPECT_EQ(standard.stats().live_blocks, 1U);
    EXPECT_EQ(forbidden.uses(), 0U);
}

class DISABLED_with_forbidden_default : public pmr_debug::testing::forbidden_default_test {};

__attribute__((noinline)) std::pmr::string concatenate_carelessly(const std::pmr::string& s) {
    std::pmr::string both = s + "y";  // operator+ takes the default resource
    asm volatile("# concatenate_carelessly" ::: "memory");
    return both;
}

TEST_F(DISABLED_with_forbidden_default, uses_the_default) {
    const std::pmr::string s(100, 'x', &object);
    EXPECT_EQ(concatenate_carelessly(s).size(), 101U);
}
TEST_F(DISABLED_with_forbidden_default, leaks_from_the_object) {
    static_cast<void>(object.allocate(8, 8));
}
TEST_F(DISABLED_with_forbidden_default, is_innocent) {
    std::pmr::string s(100, 'x', &object);
    s += "y";
}

TEST_F(with_forbidden_default, fails_what_uses_the_default_and_says_where) {
    const std::string out = run_for_real("DISABLED_with_forbidden_default.*");
    EXPECT_NE(out.find("default_resource_used: the default resource was used where it is forbidden"), std::string::npos)
        << out;
    EXPECT_NE(out.find("concatenate_carelessly"), std::string::npos) << out;
    EXPECT_NE(out.find("[  FAILED  ] DISABLED_with_forbidden_default.uses_the_default"), std::string::npos) << out;
    EXPECT_NE(out.find("object has 8 bytes in 1 block in use"), std::string::npos) << out;
    EXPECT_NE(out.find("[       OK ] DISABLED_with_forbidden_default.is_innocent"), std::string::npos) << out;
    EXPECT_NE(out.find("2 FAILED TESTS"), std::string::npos) << out;
}

}  // namespace
