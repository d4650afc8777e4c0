#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/testing/default_resource_guard.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include "support/trace_contains.hpp"

#include <gtest/gtest.h>

#include <memory_resource>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::tracking_resource;
using pmr_debug::testing::default_resource_guard;
using pmr_debug::testing::forbid_default_resource;
using pmr_debug::testing::on_default_use;
using test_support::trace_contains;

const std::string text(100, 'x');

__attribute__((noinline)) std::pmr::string concatenate_here(const std::pmr::string& s) {
    std::pmr::string t = s + "x";
    asm volatile("# concatenate_here" ::: "memory");
    return t;
}

// ---- default_resource_guard ----------------------------------------------------------------------------------------

TEST(default_resource_guard, sets_and_restores) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    std::pmr::memory_resource* const before = std::pmr::get_default_resource();
    {
        const default_resource_guard guard(&memory, &errors);
        EXPECT_EQ(guard.previous(), before);
        EXPECT_EQ(std::pmr::get_default_resource(), &memory);
        {
            tracking_resource other({.handler = &errors});
            const default_resource_guard nested(&other, &errors);
            EXPECT_EQ(std::pmr::get_default_resource(), &other);
        }
        EXPECT_EQ(std::pmr::get_default_resource(), &memory);
        const std::pmr::string s(100, 'x');
        EXPECT_EQ(memory.stats().live_blocks, 1U);
    }
    EXPECT_EQ(std::pmr::get_default_resource(), before);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(default_resource_guard, a_default_that_was_not_restored_is_reported_26) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    std::pmr::memory_resource* const before = std::pmr::get_default_resource();
    {
        const default_resource_guard guard(&memory, &errors);
        tracking_resource local({.name = "local", .handler = &errors});
        std::pmr::set_default_resource(&local);
    }
    EXPECT_EQ(std::pmr::get_default_resource(), before);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::default_resource_used);
    EXPECT_EQ(errors[0].facts.owner.name, "local");
    EXPECT_FALSE(errors[0].facts.owner.alive) << "it dangled, too";
    EXPECT_NE(errors[0].text.find("was changed and not restored, it is \"local\""), std::string::npos)
        << errors[0].text;
}

TEST(default_resource_guard, a_foreign_default_that_was_not_restored_is_named_by_its_address) {
    collecting_handler errors;
    std::pmr::unsynchronized_pool_resource pool;
    {
        const default_resource_guard guard(std::pmr::new_delete_resource(), &errors);
        std::pmr::set_default_resource(&pool);
    }
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.pointer, &pool);
}

TEST(default_resource_guard, does_not_restore_a_dead_one_26) {
    collecting_handler errors;
    std::pmr::memory_resource* const before = std::pmr::get_default_resource();
    std::optional<tracking_resource> memory(std::in_place, pmr_debug::tracking_options{.name = "old"});
    std::pmr::set_default_resource(&*memory);
    {
        const default_resource_guard guard(std::pmr::new_delete_resource(), &errors);
        memory.reset();
    }
    EXPECT_EQ(std::pmr::get_default_resource(), std::pmr::new_delete_resource());
    std::pmr::set_default_resource(before);
    ASSERT_EQ(errors.count(), 1U);
    EXPECT_EQ(errors[0].facts.kind, error_kind::destroyed_resource);
    EXPECT_EQ(errors[0].facts.resource.name, "old");
}

// ---- forbid_default_resource ---------------------------------------------------------------------------------------

TEST(forbid_default_resource, reports_a_concatenation_on_an_arena_string_38) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    const std::pmr::string s(text, &memory);
    std::pmr::string kept;
    {
        const forbid_default_resource nobody(on_default_use::report, &errors);
        kept = concatenate_here(s);
        EXPECT_GE(nobody.uses(), 1U);
        EXPECT_TRUE(trace_contains(nobody.first_use(), "concatenate_here"));
    }
    EXPECT_EQ(kept.size(), text.size() + 1);
    ASSERT_GE(errors.count(error_kind::default_resource_used), 1U);
    EXPECT_TRUE(trace_contains(errors[0].facts.here, "concatenate_here"));
    EXPECT_GT(errors[0].facts.given_size, 100U);

    // The twin: everything on the arena.
    errors.clear();
    {
        const forbid_default_resource nobody(on_default_use::report, &errors);
        std::pmr::string t(s, &memory);
        t += "x";
        EXPECT_EQ(nobody.uses(), 0U);
        EXPECT_EQ(nobody.first_use(), pmr_debug::trace_id::none);
    }
    EXPECT_EQ(errors.count(), 0U);
}

__attribute__((noinline)) void use_later(std::pmr::memory_resource& r) {
    r.deallocate(r.allocate(8, 8), 8, 8);
    asm volatile("# use_later" ::: "memory");
}

TEST(forbid_default_resource, the_first_use_is_not_the_last) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    const std::pmr::string s(text, &memory);
    const forbid_default_resource nobody(on_default_use::count, &errors);
    const std::pmr::string kept = concatenate_here(s);
    use_later(*std::pmr::get_default_resource());
    EXPECT_GE(nobody.uses(), 2U);
    EXPECT_TRUE(trace_contains(nobody.first_use(), "concatenate_here"));
    EXPECT_FALSE(trace_contains(nobody.first_use(), "use_later"));
    EXPECT_EQ(errors.count(), 0U);
}

TEST(forbid_default_resource, reports_a_temporary_of_push_back_43) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    std::pmr::vector<std::pmr::string> v(&memory);
    {
        const forbid_default_resource nobody(on_default_use::report, &errors);
        v.push_back("a literal that does not fit the small buffer of a string");
    }
    EXPECT_EQ(errors.count(error_kind::default_resource_used), 1U);
    errors.clear();
    {
        const forbid_default_resource nobody(on_default_use::report, &errors);
        v.emplace_back("a literal that does not fit the small buffer of a string");
    }
    EXPECT_EQ(errors.count(), 0U);
}

// Line 15: a copy constructor that forgets the resource.
struct forgetful {
    std::pmr::string s;
    explicit forgetful(std::pmr::memory_resource* r) : s(100, 'x', r) {}
    forgetful(const forgetful& other) : s(other.s) {}  // select_on_container_copy_construction: the default
    forgetful& operator=(const forgetful&) = delete;
    ~forgetful() = default;
};

TEST(forbid_default_resource, reports_a_copy_that_falls_back_15) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    const forgetful one(&memory);
    const forbid_default_resource nobody(on_default_use::report, &errors);
    const forgetful two(one);
    EXPECT_EQ(errors.count(error_kind::default_resource_used), 1U);
}

TEST(forbid_default_resource, blocks_may_be_freed_after_the_scope) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    const default_resource_guard as_default(&memory, &errors);
    std::optional<std::pmr::string> kept;
    std::pmr::string empty_kept;
    {
        const forbid_default_resource nobody(on_default_use::count, &errors);
        kept.emplace(text);
        EXPECT_EQ(nobody.uses(), 1U);
        EXPECT_EQ(memory.stats().live_blocks, 1U) << "carried out by the default before";
    }
    *kept += *kept;  // the scope is over: forwarded without a word
    kept.reset();
    EXPECT_EQ(memory.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U) << "counted only";
}

TEST(forbid_default_resource, equals_what_it_stands_for_and_nothing_else) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    tracking_resource other({.handler = &errors});
    const default_resource_guard as_default(&memory, &errors);
    const forbid_default_resource first(on_default_use::report, &errors);
    const std::pmr::memory_resource& one = *std::pmr::get_default_resource();
    EXPECT_TRUE(one.is_equal(one));
    EXPECT_TRUE(one.is_equal(memory));
    EXPECT_FALSE(one.is_equal(other));
    EXPECT_FALSE(one.is_equal(*std::pmr::new_delete_resource()));
    {
        const forbid_default_resource second(on_default_use::report, &errors);
        const std::pmr::memory_resource& two = *std::pmr::get_default_resource();
        EXPECT_NE(&one, &two);
        EXPECT_TRUE(one.is_equal(two) && two.is_equal(one)) << "both stand for the same resource";
    }
    const default_resource_guard elsewhere(&other, &errors);
    const forbid_default_resource third(on_default_use::report, &errors);
    const std::pmr::memory_resource& three = *std::pmr::get_default_resource();
    EXPECT_FALSE(one.is_equal(three) || three.is_equal(one));
    EXPECT_EQ(errors.count(), 0U);
}

// With and without the scope a move is a move. (The standard library asks the resource that is moved from.)
TEST(forbid_default_resource, moving_out_of_the_scope_does_not_copy) {
    collecting_handler errors;
    tracking_resource memory({.handler = &errors});
    const default_resource_guard as_default(&memory, &errors);
    std::pmr::vector<int> before;
    {
        const forbid_default_resource nobody(on_default_use::count, &errors);
        std::pmr::vector<int> inside({1, 2, 3});
        const int* const elements = inside.data();
        before = std::move(inside);
#if defined(__GLIBCXX__)  // libc++ asks the resource that is moved to, and copies
        EXPECT_EQ(before.data(), elements);
#else
        EXPECT_NE(before.data(), elements);
#endif
        EXPECT_EQ(nobody.uses(), 1U);
    }
    EXPECT_EQ(before, (std::pmr::vector<int>{1, 2, 3}));
    before = std::pmr::vector<int>();
    EXPECT_EQ(memory.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(forbid_default_resource, the_innermost_scope_speaks) {
    collecting_handler outer;
    collecting_handler inner;
    const forbid_default_resource first(on_default_use::report, &outer);
    {
        const forbid_default_resource second(on_default_use::report, &inner);
        const std::pmr::string s(text);
    }
    EXPECT_EQ(inner.count(), 1U);
    EXPECT_EQ(outer.count(), 0U);
    const std::pmr::string s(text);
    EXPECT_EQ(outer.count(), 1U);
    EXPECT_EQ(first.uses(), 1U);
}

TEST(forbid_default_resource, abort_ends_the_process) {
    EXPECT_DEATH(
        {
            collecting_handler carries_on;
            const forbid_default_resource nobody(on_default_use::abort, &carries_on);
            const std::pmr::string s(text);
        },
        "");
    EXPECT_DEATH(
        {
            const forbid_default_resource nobody;
            const std::pmr::string s(text);
        },
        "default_resource_used: the default resource was used where it is forbidden: request of 10[0-9] bytes");
}

}  // namespace
