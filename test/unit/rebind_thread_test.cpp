// A resource for one thread is made in one and handed over to another.

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <memory_resource>
#include <thread>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::error_kind;

constexpr pmr_debug::policy single{.threads = pmr_debug::threading::single_checked};

void use(std::pmr::memory_resource& r) {
    r.deallocate(r.allocate(100, 8), 100, 8);
}

template <class Resource>
struct rebind_thread : ::testing::Test {};
using resources = ::testing::Types<pmr_debug::basic_general_purpose_resource<single>,
                                   pmr_debug::basic_tracking_resource<single>, pmr_debug::basic_canary_resource<single>,
                                   pmr_debug::basic_end_of_page_resource<single>, pmr_debug::temp_resource<>,
                                   pmr_debug::basic_general_purpose_resource<pmr_debug::policy{
                                       .threads = pmr_debug::threading::single_checked, .protect_metadata = true}>>;
TYPED_TEST_SUITE(rebind_thread, resources);

TYPED_TEST(rebind_thread, the_next_thread_is_the_owner) {
    collecting_handler errors;
    TypeParam resource({.handler = &errors});
    void* const p = resource.allocate(64, 8);
    use(resource);
    resource.rebind_thread();
    std::thread([&] {
        use(resource);
        resource.deallocate(p, 64, 8);
        use(resource);
    }).join();
    EXPECT_EQ(errors.count(), 0U);
    EXPECT_EQ(resource.stats().live_blocks, 0U);
    // This thread is a foreign one now.
    use(resource);
    EXPECT_GT(errors.count(error_kind::foreign_thread), 0U);
    EXPECT_EQ(errors.count(), errors.count(error_kind::foreign_thread));
    EXPECT_NE(errors[0].facts.other_thread, errors[0].facts.thread);
    errors.clear();
    resource.rebind_thread();
    use(resource);
    EXPECT_EQ(errors.count(), 0U);
}

}  // namespace
