// What the suite says of the standard library's resources (libstdc++), and what its pools accept without a word. The
// tables of docs/conformance.md are these tests; where a later library does better, they fail, and the page changes.

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/testing/conformance_gtest.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include "support/odd_calls.hpp"
#include "support/sanitizers.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <new>
#include <ostream>
#include <string>
#include <vector>

using pmr_debug::testing::check_conformance;
using pmr_debug::testing::conformance_error;
using pmr_debug::testing::conformance_finding;
using pmr_debug::testing::conformance_options;
using pmr_debug::testing::conformance_part;
using pmr_debug::testing::conformance_parts;
using pmr_debug::testing::in_lines;
using pmr_debug::testing::resource_builder_for;
using pmr_debug::testing::resource_builder_of;

using std_pool = std::pmr::unsynchronized_pool_resource;
using std_shared_pool = std::pmr::synchronized_pool_resource;
using std_arena = std::pmr::monotonic_buffer_resource;

// ---- as types -------------------------------------------------------------------------------------------------------

namespace pmr_debug::testing {

/// Misaligned above 8, and crash after a refusal: see below.
template <>
struct conformance_traits<std_pool> {
    static conformance_options options() {
        return {.largest_alignment = 8,
                .skip = {conformance_part::refusing_upstream, conformance_part::over_alignment}};
    }
    static resource_builder builder() { return resource_builder_of<std_pool>(); }
};
template <>
struct conformance_traits<std_shared_pool> {
    static conformance_options options() {
        conformance_options o = conformance_traits<std_pool>::options();
        o.threads = 3;
        return o;
    }
    static resource_builder builder() { return resource_builder_of<std_shared_pool>(); }
};

}  // namespace pmr_debug::testing

namespace {

using standard_types = testing::Types<std_arena, std_pool, std_shared_pool,
                                      pmr_debug::testing::resource_chain<std_arena, pmr_debug::tracking_resource>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Standard, ResourceConformance, standard_types);

// ---- as values ------------------------------------------------------------------------------------------------------

std::vector<pmr_debug::testing::conformance_case> existing_ones() {
    return {{"new_delete",
             resource_builder_for(*std::pmr::new_delete_resource()),
             {.threads = 3, .skip = {conformance_part::refusing_upstream, conformance_part::impossible_sizes}}},
            {"null",
             resource_builder_for(*std::pmr::null_memory_resource()),
             {.threads = 2, .may_refuse = true, .skip = {conformance_part::refusing_upstream}}}};
}
PMR_DEBUG_CONFORMANCE_TESTS(StandardConformance, existing_ones());

// ---- what the suite finds -----------------------------------------------------------------------------------

TEST(NewDelete, GrantsSizesThatWrapAroundWhenRoundedUpToTheAlignment) {
    if (TEST_SANITIZED) {
        GTEST_SKIP() << "a sanitizer ends the program";
    }
    const auto found = check_conformance(resource_builder_for(*std::pmr::new_delete_resource()),
                                         {.skip = conformance_parts::all_but(conformance_part::impossible_sizes)});
    ASSERT_EQ(found.size(), 1U) << in_lines(found);
    EXPECT_EQ(found[0].error, conformance_error::impossible_granted);
    EXPECT_NE(found[0].text.find("18446744073709551615 bytes with alignment 16"), std::string::npos) << found[0].text;
}

template <class Pool>
class StandardPools : public testing::Test {};
using pools = testing::Types<std_pool, std_shared_pool>;
TYPED_TEST_SUITE(StandardPools, pools);

TYPED_TEST(StandardPools, MisalignSizesThatAreNoMultipleOfTheAlignment) {
    const conformance_options o{.skip = conformance_parts::all_but(conformance_part::sizes_and_alignments)};
    const auto found = check_conformance(resource_builder_of<TypeParam>(), o);
    ASSERT_EQ(found.size(), 1U) << in_lines(found);
    EXPECT_EQ(found[0].error, conformance_error::misaligned);
}

TYPED_TEST(StandardPools, DoNotLiveThroughARefusalOfTheUpstream) {
    if (TEST_SANITIZED) {
        GTEST_SKIP() << "a sanitizer ends the program its own way";
    }
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    const conformance_options o{.largest_alignment = 8,
                                .skip = conformance_parts::all_but(conformance_part::refusing_upstream)};
    EXPECT_DEATH(
        {
            const auto found = check_conformance(resource_builder_of<TypeParam>(), o);
            std::fprintf(stderr, "%s", in_lines(found).c_str());
            std::abort();
        },
        "");
}

// ---- what the pools accept ------------------------------------------------------------------------------------------

using std::pmr::memory_resource;

struct misuse {
    const char* name;
    pmr_debug::error_kind kind;  ///< what a tracking resource says of it
    void (*commit)(memory_resource& r, memory_resource& another);
};

std::ostream& operator<<(std::ostream& out, const misuse& m) {
    return out << m.name;
}

const misuse misuses[] = {
    {"double_free", pmr_debug::error_kind::double_free,
     [](memory_resource& r, memory_resource&) {
         void* const p = r.allocate(64, 8);
         r.deallocate(p, 64, 8);
         r.deallocate(p, 64, 8);
     }},
    {"double_free_of_a_large_block", pmr_debug::error_kind::double_free,
     [](memory_resource& r, memory_resource&) {
         void* const p = r.allocate(std::size_t{1} << 23, 8);
         r.deallocate(p, std::size_t{1} << 23, 8);
         r.deallocate(p, std::size_t{1} << 23, 8);
     }},
    {"wrong_size", pmr_debug::error_kind::size_mismatch,
     [](memory_resource& r, memory_resource&) { r.deallocate(r.allocate(64, 8), 32, 8); }},
    {"wrong_size_of_the_same_class", pmr_debug::error_kind::size_mismatch,
     [](memory_resource& r, memory_resource&) { r.deallocate(r.allocate(64, 8), 63, 8); }},
    {"large_block_given_back_as_small", pmr_debug::error_kind::size_mismatch,
     [](memory_resource& r, memory_resource&) { r.deallocate(r.allocate(std::size_t{1} << 23, 8), 64, 8); }},
    {"small_block_given_back_as_large", pmr_debug::error_kind::size_mismatch,
     [](memory_resource& r, memory_resource&) { r.deallocate(r.allocate(64, 8), std::size_t{1} << 23, 8); }},
    {"wrong_alignment", pmr_debug::error_kind::alignment_mismatch,
     [](memory_resource& r, memory_resource&) { r.deallocate(r.allocate(64, 64), 64, 128); }},
    {"interior_pointer", pmr_debug::error_kind::interior_free,
     [](memory_resource& r, memory_resource&) {
         r.deallocate(static_cast<std::byte*>(r.allocate(64, 8)) + 16, 48, 8);
     }},
    {"block_of_another_pool", pmr_debug::error_kind::invalid_free,
     [](memory_resource& r, memory_resource& another) { r.deallocate(another.allocate(64, 8), 64, 8); }},
    {"array_on_the_stack", pmr_debug::error_kind::invalid_free,
     [](memory_resource& r, memory_resource&) {
         alignas(8) std::byte array[64];
         r.deallocate(array, 64, 8);
     }},
    {"null", pmr_debug::error_kind::null_free,
     [](memory_resource& r, memory_resource&) { test_support::free_null(r, 64, 8); }},
    {"never_given_back", pmr_debug::error_kind::leak,
     [](memory_resource& r, memory_resource&) { static_cast<void>(r.allocate(64, 8)); }},
    {"alignment_that_is_no_power_of_two", pmr_debug::error_kind::bad_alignment,
     [](memory_resource& r, memory_resource&) {
         try {
             test_support::allocate_odd(r, 64, 24);
         } catch (const std::bad_alloc&) {  // from the tracking resource
         }
     }},
};

template <class Pool>
void expect_accepted(const misuse& m) {
    pmr_debug::collecting_handler below;
    {
        pmr_debug::tracking_resource judge({.handler = &below});
        Pool pool(&judge);
        Pool another(&judge);
        EXPECT_NO_THROW(m.commit(pool, another));
    }
    EXPECT_EQ(below.count(), 0U) << "seen from below: " << below[0].text;

    pmr_debug::collecting_handler above;
    {
        Pool pool;
        Pool another;
        pmr_debug::tracking_resource judge(&pool, {.handler = &above});
        m.commit(judge, another);
    }
    EXPECT_EQ(above.count(m.kind), 1U) << m.name;
}

class Acceptance : public testing::TestWithParam<misuse> {};

TEST_P(Acceptance, IsSilentInBothPoolsAndNotInATrackingResourceOnTop) {
    expect_accepted<std_pool>(GetParam());
    expect_accepted<std_shared_pool>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Of, Acceptance, testing::ValuesIn(misuses),
                         [](const testing::TestParamInfo<misuse>& one) { return std::string(one.param.name); });

// ---- and what becomes of it -----------------------------------------------------------------------------------------

/// How many of the next \p count requests for \p bytes get \p wanted.
int times_handed_out(memory_resource& r, std::size_t bytes, const void* wanted, int count) {
    int times = 0;
    for (int i = 0; i < count; ++i) {
        times += r.allocate(bytes, 8) == wanted ? 1 : 0;
    }
    return times;
}
constexpr int many = 100'000;  // more than a chunk has

TYPED_TEST(StandardPools, AfterAFreeOfTheSecondOwnersBlockThereAreTwoOwners) {
    TypeParam pool;
    void* const first = pool.allocate(64, 8);
    pool.deallocate(first, 64, 8);
    ASSERT_EQ(times_handed_out(pool, 64, first, 1), 1);
    pool.deallocate(first, 64, 8);  // by its first owner, again
    EXPECT_EQ(times_handed_out(pool, 64, first, 1), 1);
}

TYPED_TEST(StandardPools, AWrongSizeLosesTheBlockUntilRelease) {
    TypeParam pool;
    void* const p = pool.allocate(64, 8);
    pool.deallocate(p, 32, 8);
    EXPECT_EQ(times_handed_out(pool, 64, p, many), 0);
    EXPECT_EQ(times_handed_out(pool, 32, p, many), 0);
}

TYPED_TEST(StandardPools, ABlockOfAnotherPoolStaysInUseThere) {
    TypeParam pool;
    TypeParam another;
    void* const p = another.allocate(64, 8);
    pool.deallocate(p, 64, 8);
    EXPECT_EQ(times_handed_out(pool, 64, p, many), 0);
    EXPECT_EQ(times_handed_out(another, 64, p, many), 0);
}

TYPED_TEST(StandardPools, AnInteriorPointerOfTheRightClassFreesTheWholeBlock) {
    TypeParam pool;
    auto* const p = static_cast<std::byte*>(pool.allocate(64, 8));
    pool.deallocate(p + 16, 60, 8);
    EXPECT_EQ(times_handed_out(pool, 64, p, 1), 1);
}

}  // namespace
