// Statistics of a resource that was destroyed, as a signal handler asks for that knows no better.

#include "support/odd_calls.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <memory>
#include <new>

namespace pmr_debug {
namespace {

// Called though it is no object any more: hidden from the compiler.
template <class Resource>
__attribute__((noinline)) statistics late_stats(void* place) {
    auto* volatile late = static_cast<Resource*>(place);
    return late->stats();
}

template <class Resource>
class stats_of_the_dead : public ::testing::Test {};

using resources = ::testing::Types<general_purpose_resource, end_of_page_resource, tracking_resource, canary_resource,
                                   temp_resource<>, page_resource>;
TYPED_TEST_SUITE(stats_of_the_dead, resources);

TYPED_TEST(stats_of_the_dead, are_zero) {
    alignas(TypeParam) static unsigned char place[sizeof(TypeParam)];
    auto* const r = ::new (static_cast<void*>(place)) TypeParam;
    r->deallocate(r->allocate(5000), 5000);
    EXPECT_EQ(r->stats().total_allocations, 1U);
    std::destroy_at(r);
    if (!test_support::still_callable(place)) {
        GTEST_SKIP() << "a sanitizer wiped the type of the dead object, and stops at each use of it";
    }
    EXPECT_EQ(late_stats<TypeParam>(place).total_allocations, 0U);
    EXPECT_EQ(late_stats<TypeParam>(place).upstream_bytes, 0U);
}

}  // namespace
}  // namespace pmr_debug
