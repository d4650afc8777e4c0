// Every resource, and chains of them, do what a memory_resource must do, and report nothing meanwhile.

#include "conformance.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

namespace {

using conformance::builder;
using conformance::builder_of;

using pages = pmr_debug::page_resource;
using heap = pmr_debug::general_purpose_resource;
using scope = pmr_debug::tracking_resource;
template <pmr_debug::policy P>
using heap_with = pmr_debug::basic_general_purpose_resource<P>;
template <pmr_debug::policy P>
using scope_with = pmr_debug::basic_tracking_resource<P>;

constexpr pmr_debug::policy single{.threads = pmr_debug::threading::single_checked};
constexpr pmr_debug::policy unchecked{.threads = pmr_debug::threading::unchecked};
constexpr pmr_debug::policy reusing{.freed = pmr_debug::reuse::immediate};
constexpr pmr_debug::policy quarantining{.freed = pmr_debug::reuse::quarantined};

using canary = pmr_debug::canary_resource;
using canary_single = pmr_debug::basic_canary_resource<single>;
using fence = pmr_debug::end_of_page_resource;

/// A resource made by a function of its own, where the plain constructor does not do.
struct own_pages {
    own_pages() = default;
    operator std::pmr::memory_resource&() noexcept { return resource; }
    fence resource;
};
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

struct candidate {
    const char* name;
    builder build;
    conformance::traits traits{};
};

constexpr conformance::traits threaded{.threads = 3};
// libstdc++'s pools crash after a refusal, and misalign sizes that are no multiple of an alignment above 8.
constexpr conformance::traits std_pools{.largest_alignment = 8, .upstream_may_refuse = false};
constexpr conformance::traits std_shared_pools{.largest_alignment = 8, .threads = 3, .upstream_may_refuse = false};
constexpr conformance::traits bottom{.threads = 3, .upstream_may_refuse = false};
// A page a block.
constexpr conformance::traits own_fence{.churn_steps = 500, .threads = 2, .upstream_may_refuse = false};
// Two system calls an operation.
constexpr conformance::traits slow{.churn_steps = 300, .threads = 2};

std::vector<candidate> resources() {
    return {
        {"page", builder_of<pages>(), bottom},
        {"general_purpose", builder_of<heap>(), threaded},
        {"general_purpose_thorough", builder_of<heap_with<pmr_debug::thorough_policy>>(), slow},
        {"general_purpose_fast", builder_of<heap_with<pmr_debug::fast_policy>>(), threaded},
        {"general_purpose_release", builder_of<heap_with<pmr_debug::release_policy>>(), threaded},
        {"general_purpose_single", builder_of<heap_with<single>>()},
        {"general_purpose_unchecked", builder_of<heap_with<unchecked>>()},
        {"general_purpose_reusing", builder_of<heap_with<reusing>>(), threaded},
        {"general_purpose_quarantining", builder_of<heap_with<quarantining>>(), threaded},
        {"tracking", builder_of<scope>(), threaded},
        {"tracking_thorough", builder_of<scope_with<pmr_debug::thorough_policy>>(), threaded},
        {"tracking_fast", builder_of<scope_with<pmr_debug::fast_policy>>(), threaded},
        {"tracking_release", builder_of<scope_with<pmr_debug::release_policy>>(), threaded},
        {"tracking_single", builder_of<scope_with<single>>()},
        {"canary", builder_of<pmr_debug::canary_resource>(), threaded},
        {"canary_fast", builder_of<pmr_debug::basic_canary_resource<pmr_debug::fast_policy>>(), threaded},
        {"canary_release", builder_of<pmr_debug::basic_canary_resource<pmr_debug::release_policy>>(), threaded},
        {"canary_single", builder_of<pmr_debug::basic_canary_resource<single>>()},
        {"end_of_page_over_upstream", builder_of<fence>(), threaded},
        {"end_of_page", builder_of<own_pages>(), own_fence},
        {"temp", builder_of<pmr_debug::temp_resource<>>()},
        {"temp_in_place", builder_of<quiet_temp>()},
        {"temp_release", builder_of<pmr_debug::temp_resource<0, pmr_debug::release_policy>>()},
        {"limit", builder_of<pmr_debug::limit_resource>(), threaded},
        {"failing_never", builder_of<pmr_debug::failing_resource>(), threaded},
        {"logging", builder_of<quiet_log>(), threaded},
        {"proxy", builder_of<proxy>(), threaded},
    };
}

std::vector<candidate> chains() {
    using std_pool = std::pmr::unsynchronized_pool_resource;
    using std_shared_pool = std::pmr::synchronized_pool_resource;
    using std_arena = std::pmr::monotonic_buffer_resource;
    return {
        {"general_purpose_over_page", builder_of<heap, pages>(), bottom},
        {"tracking_over_general_purpose", builder_of<scope, heap>(), threaded},
        {"tracking_over_general_purpose_over_page", builder_of<scope, heap, pages>(), bottom},
        {"general_purpose_over_tracking", builder_of<heap, scope>(), threaded},
        {"general_purpose_over_tracking_over_page", builder_of<heap, scope, pages>(), bottom},
        {"general_purpose_over_general_purpose", builder_of<heap, heap>(), threaded},
        {"three_scopes", builder_of<scope, scope, scope>(), threaded},
        {"tracking_over_std_pool", builder_of<scope_with<single>, std_pool>(), std_pools},
        {"std_pool_over_general_purpose_over_page", builder_of<std_pool, heap, pages>(), std_pools},
        {"tracking_over_std_pool_over_general_purpose", builder_of<scope, std_pool, heap>(), std_pools},
        {"std_shared_pool_over_tracking", builder_of<std_shared_pool, scope>(), std_shared_pools},
        {"tracking_over_std_arena_over_general_purpose", builder_of<scope, std_arena, heap>()},
        {"tracking_over_end_of_page", builder_of<scope, own_pages>(), own_fence},
        {"canary_over_general_purpose_over_page", builder_of<canary, heap, pages>(), bottom},
        {"canary_over_std_pool_over_tracking", builder_of<canary_single, std_pool, scope>(), std_pools},
        {"canary_over_canary", builder_of<canary, canary>(), threaded},
        {"temp_over_tracking_over_general_purpose", builder_of<pmr_debug::temp_resource<>, scope, heap>()},
        {"tracking_over_temp_over_general_purpose_over_page",
         builder_of<scope_with<single>, pmr_debug::temp_resource<>, heap, pages>(),
         {.upstream_may_refuse = false}},
        {"failing_over_limit_over_tracking",
         builder_of<pmr_debug::failing_resource, pmr_debug::limit_resource, scope>(), threaded},
        {"proxy_over_canary_over_page", builder_of<proxy, canary, pages>(), bottom},
        {"release_over_release",
         builder_of<scope_with<pmr_debug::release_policy>, heap_with<pmr_debug::release_policy>>(), threaded},
    };
}

class Conformance : public testing::TestWithParam<candidate> {};

TEST_P(Conformance, DoesWhatAResourceMust) {
    pmr_debug::collecting_handler errors;
    pmr_debug::report_handler& before = pmr_debug::set_default_report_handler(&errors);
    const std::vector<std::string> problems = conformance::check(GetParam().build, GetParam().traits);
    pmr_debug::set_default_report_handler(&before);

    for (const std::string& problem : problems) {
        ADD_FAILURE() << problem;
    }
    EXPECT_EQ(errors.count(), 0U) << (errors.size() != 0 ? std::string(errors[0].text) : "");
}

std::string name_of(const testing::TestParamInfo<candidate>& c) {
    return c.param.name;
}

INSTANTIATE_TEST_SUITE_P(Resource, Conformance, testing::ValuesIn(resources()), name_of);
INSTANTIATE_TEST_SUITE_P(Chain, Conformance, testing::ValuesIn(chains()), name_of);

}  // namespace
