// Every resource under every shipped policy, and chains of them, do what a memory_resource must do, and report nothing
// meanwhile.

#include <pmr_debug/pmr_debug.hpp>
#include <pmr_debug/testing/conformance_gtest.hpp>

#include <gtest/gtest.h>

#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

namespace {

using pmr_debug::testing::check_conformance;
using pmr_debug::testing::conformance_case;
using pmr_debug::testing::conformance_options;
using pmr_debug::testing::conformance_part;
using pmr_debug::testing::resource_builder_of;

constexpr pmr_debug::policy single{.threads = pmr_debug::threading::single_checked};
constexpr pmr_debug::policy unchecked{.threads = pmr_debug::threading::unchecked};
constexpr pmr_debug::policy reusing{.freed = pmr_debug::reuse::immediate};
constexpr pmr_debug::policy quarantining{.freed = pmr_debug::reuse::quarantined};

using pages = pmr_debug::page_resource;
template <pmr_debug::policy P>
using heap_with = pmr_debug::basic_general_purpose_resource<P>;
template <pmr_debug::policy P>
using scope_with = pmr_debug::basic_tracking_resource<P>;
template <pmr_debug::policy P>
using canary_with = pmr_debug::basic_canary_resource<P>;
template <pmr_debug::policy P>
using fence_with = pmr_debug::basic_end_of_page_resource<P>;
template <pmr_debug::policy P>
using temp_with = pmr_debug::basic_temp_resource<P>;
using heap = pmr_debug::general_purpose_resource;
using scope = pmr_debug::tracking_resource;
using canary = pmr_debug::canary_resource;
using fence = pmr_debug::end_of_page_resource;
using temp = pmr_debug::temp_resource<>;

/// A resource made by a function of its own, where the plain constructor does not do.
template <pmr_debug::policy P>
struct own_pages_with {
    own_pages_with() = default;
    operator std::pmr::memory_resource&() noexcept { return resource; }
    fence_with<P> resource;
};
using own_pages = own_pages_with<pmr_debug::default_policy>;
struct quiet_temp {
    explicit quiet_temp(std::pmr::memory_resource* upstream)
        : resource(upstream, {.overflow = pmr_debug::temp_overflow::silent}) {}
    operator std::pmr::memory_resource&() noexcept { return resource; }
    pmr_debug::temp_resource<256> resource;
};
struct quiet_log {
    explicit quiet_log(std::pmr::memory_resource* upstream)
        : resource(upstream, {.sink = [](std::string_view, void*) noexcept {}}) {}
    operator std::pmr::memory_resource&() noexcept { return resource; }
    pmr_debug::logging_resource resource;
};
struct proxy {
    explicit proxy(std::pmr::memory_resource* upstream) : handle(upstream) {}
    operator std::pmr::memory_resource&() noexcept { return *handle.resource(); }
    pmr_debug::immortal_proxy handle;
};

const conformance_options threaded{.threads = 3};
// libstdc++'s pools crash after a refusal, and misalign sizes that are no multiple of an alignment above 8.
const conformance_options std_pools{.largest_alignment = 8,
                                    .skip = {conformance_part::refusing_upstream, conformance_part::over_alignment}};
const conformance_options std_shared_pools{
    .largest_alignment = 8,
    .threads = 3,
    .skip = {conformance_part::refusing_upstream, conformance_part::over_alignment}};
const conformance_options bottom{.threads = 3, .skip = {conformance_part::refusing_upstream}};
// A page a block.
const conformance_options own_fence{.steps = 500, .threads = 2, .skip = {conformance_part::refusing_upstream}};
// Two system calls an operation.
const conformance_options slow{.steps = 300, .threads = 2};

std::vector<conformance_case> resources() {
    using namespace pmr_debug;
    return {
        {"page", resource_builder_of<pages>(), bottom},
        {"general_purpose_default", resource_builder_of<heap>(), threaded},
        {"general_purpose_thorough", resource_builder_of<heap_with<thorough_policy>>(), slow},
        {"general_purpose_fast", resource_builder_of<heap_with<fast_policy>>(), threaded},
        {"general_purpose_release", resource_builder_of<heap_with<release_policy>>(), threaded},
        {"general_purpose_single", resource_builder_of<heap_with<single>>()},
        {"general_purpose_unchecked", resource_builder_of<heap_with<unchecked>>()},
        {"general_purpose_reusing", resource_builder_of<heap_with<reusing>>(), threaded},
        {"general_purpose_quarantining", resource_builder_of<heap_with<quarantining>>(), threaded},
        {"tracking_default", resource_builder_of<scope>(), threaded},
        {"tracking_thorough", resource_builder_of<scope_with<thorough_policy>>(), threaded},
        {"tracking_fast", resource_builder_of<scope_with<fast_policy>>(), threaded},
        {"tracking_release", resource_builder_of<scope_with<release_policy>>(), threaded},
        {"tracking_single", resource_builder_of<scope_with<single>>()},
        {"canary_default", resource_builder_of<canary>(), threaded},
        {"canary_thorough", resource_builder_of<canary_with<thorough_policy>>(), slow},
        {"canary_fast", resource_builder_of<canary_with<fast_policy>>(), threaded},
        {"canary_release", resource_builder_of<canary_with<release_policy>>(), threaded},
        {"canary_single", resource_builder_of<canary_with<single>>()},
        {"end_of_page_default", resource_builder_of<own_pages>(), own_fence},
        {"end_of_page_thorough", resource_builder_of<own_pages_with<thorough_policy>>(), own_fence},
        {"end_of_page_fast", resource_builder_of<own_pages_with<fast_policy>>(), own_fence},
        {"end_of_page_release", resource_builder_of<own_pages_with<release_policy>>(), own_fence},
        {"end_of_page_over_upstream_default", resource_builder_of<fence>(), threaded},
        {"end_of_page_over_upstream_thorough", resource_builder_of<fence_with<thorough_policy>>(), slow},
        {"end_of_page_over_upstream_fast", resource_builder_of<fence_with<fast_policy>>(), threaded},
        {"end_of_page_over_upstream_release", resource_builder_of<fence_with<release_policy>>(), threaded},
        {"temp_own_policy", resource_builder_of<temp>()},
        {"temp_default", resource_builder_of<temp_with<default_policy>>(), threaded},
        {"temp_thorough", resource_builder_of<temp_with<thorough_policy>>(), threaded},
        {"temp_fast", resource_builder_of<temp_with<fast_policy>>(), threaded},
        {"temp_release", resource_builder_of<temp_with<release_policy>>(), threaded},
        {"temp_in_place", resource_builder_of<quiet_temp>()},
        {"limit", resource_builder_of<limit_resource>(), threaded},
        {"failing_never", resource_builder_of<failing_resource>(), threaded},
        {"logging", resource_builder_of<quiet_log>(), threaded},
        {"proxy", resource_builder_of<proxy>(), threaded},
    };
}

std::vector<conformance_case> chains() {
    using std_pool = std::pmr::unsynchronized_pool_resource;
    using std_shared_pool = std::pmr::synchronized_pool_resource;
    using std_arena = std::pmr::monotonic_buffer_resource;
    using namespace pmr_debug;
    return {
        {"general_purpose_over_page", resource_builder_of<heap, pages>(), bottom},
        {"tracking_over_general_purpose", resource_builder_of<scope, heap>(), threaded},
        {"tracking_over_general_purpose_over_page", resource_builder_of<scope, heap, pages>(), bottom},
        {"general_purpose_over_tracking", resource_builder_of<heap, scope>(), threaded},
        {"general_purpose_over_tracking_over_page", resource_builder_of<heap, scope, pages>(), bottom},
        {"general_purpose_over_general_purpose", resource_builder_of<heap, heap>(), threaded},
        {"three_scopes", resource_builder_of<scope, scope, scope>(), threaded},
        {"tracking_over_std_pool", resource_builder_of<scope_with<single>, std_pool>(), std_pools},
        {"std_pool_over_general_purpose_over_page", resource_builder_of<std_pool, heap, pages>(), std_pools},
        {"tracking_over_std_pool_over_general_purpose", resource_builder_of<scope, std_pool, heap>(), std_pools},
        {"std_shared_pool_over_tracking", resource_builder_of<std_shared_pool, scope>(), std_shared_pools},
        {"tracking_over_std_arena_over_general_purpose", resource_builder_of<scope, std_arena, heap>()},
        {"tracking_over_end_of_page", resource_builder_of<scope, own_pages>(), own_fence},
        {"canary_over_general_purpose_over_page", resource_builder_of<canary, heap, pages>(), bottom},
        {"canary_over_std_pool_over_tracking", resource_builder_of<canary_with<single>, std_pool, scope>(), std_pools},
        {"canary_over_canary", resource_builder_of<canary, canary>(), threaded},
        {"temp_over_tracking_over_general_purpose", resource_builder_of<temp, scope, heap>()},
        {"tracking_over_temp_over_general_purpose_over_page",
         resource_builder_of<scope_with<single>, temp, heap, pages>(),
         {.skip = {conformance_part::refusing_upstream}}},
        {"failing_over_limit_over_tracking", resource_builder_of<failing_resource, limit_resource, scope>(), threaded},
        {"proxy_over_canary_over_page", resource_builder_of<proxy, canary, pages>(), bottom},
        {"release_over_release", resource_builder_of<scope_with<release_policy>, heap_with<release_policy>>(),
         threaded},
        {"thorough_over_thorough", resource_builder_of<scope_with<thorough_policy>, heap_with<thorough_policy>>(),
         slow},
    };
}

class Conformance : public testing::TestWithParam<conformance_case> {};

TEST_P(Conformance, DoesWhatAResourceMust) {
    pmr_debug::collecting_handler errors;
    pmr_debug::report_handler& before = pmr_debug::set_default_report_handler(&errors);
    const auto found = check_conformance(GetParam().build, GetParam().options);
    pmr_debug::set_default_report_handler(&before);

    EXPECT_EQ(pmr_debug::testing::in_lines(found), "");
    EXPECT_EQ(errors.count(), 0U) << (errors.size() != 0 ? std::string(errors[0].text) : "");
}

INSTANTIATE_TEST_SUITE_P(Resource, Conformance, testing::ValuesIn(resources()), pmr_debug::testing::detail::name_of);
INSTANTIATE_TEST_SUITE_P(Chain, Conformance, testing::ValuesIn(chains()), pmr_debug::testing::detail::name_of);

}  // namespace
