#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// The conformance suite as tests for GoogleTest, for a list of types or a list of values.
///
/// \code
///   #include <pmr_debug/testing/conformance_gtest.hpp>
///   const auto found = pmr_debug::testing::check_conformance(
///       pmr_debug::testing::resource_builder_of<std::pmr::monotonic_buffer_resource>());
///   EXPECT_EQ(pmr_debug::testing::in_lines(found), "");
/// \endcode
///
/// A test a part for each type. A type that is no bottom takes an upstream; chains are types as well. What must be
/// known of a type stands in a specialisation of conformance_traits:
///
/// \verbatim
///   template <>
///   struct pmr_debug::testing::conformance_traits<my_pool> {
///       static conformance_options options() { return {.threads = 4}; }
///       static resource_builder builder() { return resource_builder_of<my_pool>(); }
///   };
///   using mine = testing::Types<my_pool, pmr_debug::testing::resource_chain<my_pool, my_arena>>;
///   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, ResourceConformance, mine);
/// \endverbatim
///
/// A test a value, where resources are made by functions; once in a file, outside any function:
///
/// \verbatim
///   std::vector<pmr_debug::testing::conformance_case> mine();   // {name, builder, options}
///   PMR_DEBUG_CONFORMANCE_TESTS(MyResources, mine());
/// \endverbatim

#include <pmr_debug/testing/conformance.hpp>

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

namespace pmr_debug::testing {

inline void PrintTo(conformance_part p, std::ostream* out) {  // NOLINT(readability-identifier-naming)
    *out << to_string(p);
}
inline void PrintTo(conformance_error e, std::ostream* out) {  // NOLINT(readability-identifier-naming)
    *out << to_string(e);
}

/// Returns: a line for each finding, with its kind and how often it was found.
[[nodiscard]] inline std::string in_lines(const std::vector<conformance_finding>& found) {
    std::string lines;
    for (const conformance_finding& f : found) {
        lines += std::string(to_string(f.error)) + ", " + std::to_string(f.count) + " times, first in " + f.text + "\n";
    }
    return lines;
}

// ---- types ----------------------------------------------------------------------------------------------------------

/// What is known of a resource type, to be specialised.
template <class Resource>
struct conformance_traits {
    static conformance_options options() { return {}; }
    static resource_builder builder() { return resource_builder_of<Resource>(); }
};
template <class... Resources>
struct conformance_traits<resource_chain<Resources...>> {
    static conformance_options options() { return {}; }
    static resource_builder builder() { return resource_builder_of<Resources...>(); }
};

namespace detail {

template <class Resource>
void expect_conformance(conformance_part part) {
    conformance_options o = conformance_traits<Resource>::options();
    if (o.skip.contains(part) || (part == conformance_part::threads && o.threads == 0)) {
        GTEST_SKIP() << to_string(part) << " is left out by the options";
    }
    o.skip = conformance_parts::all_but(part);
    EXPECT_EQ(in_lines(check_conformance(conformance_traits<Resource>::builder(), o)), "");
}

}  // namespace detail

// ---- values ---------------------------------------------------------------------------------------------------------

/// A resource to be examined. The name is that of its test: letters, digits and underscores.
struct conformance_case {
    std::string name;
    resource_builder build;
    conformance_options options{};
};

namespace detail {

inline std::string name_of(const ::testing::TestParamInfo<conformance_case>& c) {
    return c.param.name;
}

}  // namespace detail

inline void PrintTo(const conformance_case& c, std::ostream* out) {  // NOLINT(readability-identifier-naming)
    *out << c.name;
}

}  // namespace pmr_debug::testing

/// To be instantiated with a list of types by INSTANTIATE_TYPED_TEST_SUITE_P.
template <class Resource>
class ResourceConformance : public ::testing::Test {};  // NOLINT(readability-identifier-naming)

TYPED_TEST_SUITE_P(ResourceConformance);
// One test for each pmr_debug::testing::conformance_part.
// NOLINTBEGIN(readability-identifier-naming)
TYPED_TEST_P(ResourceConformance, SizesAndAlignments) {
    using part = ::pmr_debug::testing::conformance_part;
    ::pmr_debug::testing::detail::expect_conformance<TypeParam>(part::sizes_and_alignments);
}
TYPED_TEST_P(ResourceConformance, RandomOrder) {
    using part = ::pmr_debug::testing::conformance_part;
    ::pmr_debug::testing::detail::expect_conformance<TypeParam>(part::random_order);
}
TYPED_TEST_P(ResourceConformance, ZeroBytes) {
    using part = ::pmr_debug::testing::conformance_part;
    ::pmr_debug::testing::detail::expect_conformance<TypeParam>(part::zero_bytes);
}
TYPED_TEST_P(ResourceConformance, OverAlignment) {
    using part = ::pmr_debug::testing::conformance_part;
    ::pmr_debug::testing::detail::expect_conformance<TypeParam>(part::over_alignment);
}
TYPED_TEST_P(ResourceConformance, ImpossibleSizes) {
    using part = ::pmr_debug::testing::conformance_part;
    ::pmr_debug::testing::detail::expect_conformance<TypeParam>(part::impossible_sizes);
}
TYPED_TEST_P(ResourceConformance, Equality) {
    using part = ::pmr_debug::testing::conformance_part;
    ::pmr_debug::testing::detail::expect_conformance<TypeParam>(part::equality);
}
TYPED_TEST_P(ResourceConformance, Threads) {
    using part = ::pmr_debug::testing::conformance_part;
    ::pmr_debug::testing::detail::expect_conformance<TypeParam>(part::threads);
}
TYPED_TEST_P(ResourceConformance, RefusingUpstream) {
    using part = ::pmr_debug::testing::conformance_part;
    ::pmr_debug::testing::detail::expect_conformance<TypeParam>(part::refusing_upstream);
}
// NOLINTEND(readability-identifier-naming)
REGISTER_TYPED_TEST_SUITE_P(ResourceConformance, SizesAndAlignments, RandomOrder, ZeroBytes, OverAlignment,
                            ImpossibleSizes, Equality, Threads, RefusingUpstream);
// A file may include this for the rest of it.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ResourceConformance);

/// Defines a test suite \p suite with a test for each of the cases, a container of
/// pmr_debug::testing::conformance_case.
#define PMR_DEBUG_CONFORMANCE_TESTS(suite, ...)                                                                     \
    class suite : public ::testing::TestWithParam<::pmr_debug::testing::conformance_case> {};                       \
    TEST_P(suite, Conforms) {                                                                                       \
        const ::pmr_debug::testing::conformance_case& c = this->GetParam();                                         \
        EXPECT_EQ(::pmr_debug::testing::in_lines(::pmr_debug::testing::check_conformance(c.build, c.options)), ""); \
    }                                                                                                               \
    INSTANTIATE_TEST_SUITE_P(Resources, suite, ::testing::ValuesIn(__VA_ARGS__), ::pmr_debug::testing::detail::name_of)

#endif  // PMR_DEBUG_LANGUAGE
