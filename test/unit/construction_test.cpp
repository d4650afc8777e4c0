// How a resource can be made: the same for all of them.

#include <pmr_debug/pmr_debug.hpp>

#include <gsl/pointers>

#include <gtest/gtest.h>

#include <concepts>
#include <cstddef>
#include <memory_resource>
#include <type_traits>

namespace {

using pmr_debug::immortal_proxy;

template <class R>
concept made_from_braces = requires {
    R({});
};

template <class R>
class construction : public testing::Test {};

using resources =
    testing::Types<pmr_debug::canary_resource, pmr_debug::end_of_page_resource, pmr_debug::failing_resource,
                   pmr_debug::general_purpose_resource, pmr_debug::limit_resource, pmr_debug::logging_resource,
                   pmr_debug::temp_resource<>, pmr_debug::temp_resource<256>, pmr_debug::tracking_resource>;
TYPED_TEST_SUITE(construction, resources);

// The end-of-page resource has the operating system's pages below.
template <class R>
std::pmr::memory_resource* usual_upstream() {
    return std::same_as<R, pmr_debug::end_of_page_resource> ? nullptr : std::pmr::new_delete_resource();
}

// Makes the resource work, too.
template <class R>
void expect_works(R& r, std::pmr::memory_resource* upstream) {
    EXPECT_EQ(r.upstream_resource(), upstream);
    void* const p = r.allocate(40, 8);
    EXPECT_NE(p, nullptr);
    r.deallocate(p, 40, 8);
    EXPECT_TRUE(r.ok());
}

TYPED_TEST(construction, nothing_and_empty_braces_mean_default_options) {
    TypeParam plain;
    EXPECT_EQ(plain.upstream_resource(), usual_upstream<TypeParam>());
    TypeParam listed{};
    EXPECT_EQ(listed.upstream_resource(), usual_upstream<TypeParam>());
    TypeParam braces({});
    EXPECT_EQ(braces.upstream_resource(), usual_upstream<TypeParam>());
    if constexpr (!std::same_as<TypeParam, pmr_debug::logging_resource>) {  // would write to standard error
        expect_works(plain, usual_upstream<TypeParam>());
        expect_works(braces, usual_upstream<TypeParam>());
    }
    struct holder {
        TypeParam member;
    };
    holder h{};
    EXPECT_TRUE(h.member.ok());
}

TYPED_TEST(construction, takes_options) {
    TypeParam named({.name = "named"});
    EXPECT_EQ(named.name(), "named");
    EXPECT_EQ(named.upstream_resource(), usual_upstream<TypeParam>());
}

TYPED_TEST(construction, takes_an_upstream_of_any_kind_of_pointer) {
    pmr_debug::tracking_resource below({.name = "below"});
    std::pmr::memory_resource* const base = &below;
    TypeParam from_derived(&below);
    TypeParam from_base(base, {});
    TypeParam from_not_null(gsl::not_null<std::pmr::memory_resource*>(base), {.name = "not null"});
    TypeParam from_not_null_derived(gsl::make_not_null(&below));
    EXPECT_EQ(from_derived.upstream_resource(), base);
    EXPECT_EQ(from_base.upstream_resource(), base);
    EXPECT_EQ(from_not_null.upstream_resource(), base);
    EXPECT_EQ(from_not_null_derived.upstream_resource(), base);
    EXPECT_EQ(from_not_null.name(), "not null");
    if constexpr (!std::same_as<TypeParam, pmr_debug::logging_resource>) {
        expect_works(from_derived, base);
    }
}

TYPED_TEST(construction, null_and_other_things_do_not_compile) {
    static_assert(std::is_default_constructible_v<TypeParam>);
    static_assert(made_from_braces<TypeParam>);
    static_assert(std::is_constructible_v<TypeParam, std::pmr::memory_resource*>);
    static_assert(!std::is_constructible_v<TypeParam, std::nullptr_t>);
    static_assert(!std::is_constructible_v<TypeParam, int>);
    static_assert(!std::is_constructible_v<TypeParam, const std::pmr::memory_resource*>);
    static_assert(!std::is_constructible_v<TypeParam, const TypeParam&>);
    static_assert(!std::is_constructible_v<TypeParam, TypeParam>);
    static_assert(!std::is_convertible_v<std::pmr::memory_resource*, TypeParam>, "explicit");
}

TYPED_TEST(construction, a_pointer_that_is_null_is_reported) {
    auto* volatile nothing = static_cast<std::pmr::memory_resource*>(nullptr);
    EXPECT_DEATH(TypeParam{nothing}, "null_upstream");
}

TEST(construction_of_others, pages_have_no_upstream) {
    pmr_debug::page_resource braces({});
    EXPECT_EQ(braces.name(), "");
    EXPECT_EQ(braces.upstream_resource(), nullptr);
    braces.deallocate(braces.allocate(1, 1), 1, 1);
    EXPECT_TRUE(braces.ok());
    static_assert(std::is_default_constructible_v<pmr_debug::page_resource>);
    static_assert(!std::is_constructible_v<pmr_debug::page_resource, std::pmr::memory_resource*>);
    static_assert(!std::is_constructible_v<pmr_debug::page_resource, std::nullptr_t>);
}

TEST(construction_of_others, a_buffer_goes_with_options_or_an_upstream) {
    alignas(16) unsigned char buffer[256];
    {
        pmr_debug::temp_resource arena(buffer, 256, {});  // an int
        expect_works(arena, std::pmr::new_delete_resource());
    }
    pmr_debug::tracking_resource below;
    {
        pmr_debug::temp_resource arena(buffer, sizeof buffer, &below, {});
        expect_works(arena, &below);
    }
    using arena = pmr_debug::temp_resource<>;
    static_assert(!std::is_constructible_v<arena, void*, std::size_t, std::nullptr_t>);
    static_assert(!std::is_constructible_v<arena, pmr_debug::tracking_resource*, std::size_t>);  // the other way round
    static_assert(!std::is_constructible_v<arena, std::pmr::memory_resource*, int>);
    static_assert(!std::is_constructible_v<arena, void*, double>);
    static_assert(std::is_constructible_v<arena, void*, std::size_t, gsl::not_null<std::pmr::memory_resource*>>);
}

TEST(construction_of_others, a_buffer_of_less_than_nothing_is_none) {
    alignas(16) unsigned char buffer[16]{};
    pmr_debug::temp_resource arena(buffer, -1);
    void* const p = arena.allocate(8, 8);
    EXPECT_NE(p, static_cast<void*>(buffer));
    arena.deallocate(p, 8, 8);
}

TEST(construction_of_others, a_proxy_needs_a_target) {
    pmr_debug::tracking_resource target;
    const immortal_proxy proxy(&target, {});
    EXPECT_EQ(proxy.stats().live_blocks, 0U);
    static_assert(!std::is_default_constructible_v<immortal_proxy>);
    static_assert(!made_from_braces<immortal_proxy>);
    static_assert(!std::is_constructible_v<immortal_proxy, std::nullptr_t>);
    static_assert(std::is_constructible_v<immortal_proxy, gsl::not_null<std::pmr::memory_resource*>>);
}

}  // namespace
