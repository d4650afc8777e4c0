#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Looks at what a resource says about being equal to others. Equal must mean that either frees what the other
/// allocated: move assignment takes a container's blocks over without a look.
///
/// \code
///   #include <pmr_debug/testing/is_equal_audit.hpp>
///   const auto audit = pmr_debug::testing::audit_is_equal<std::pmr::unsynchronized_pool_resource>();
///   assert(audit.ok());
/// \endcode

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <cstddef>
#include <memory_resource>

namespace pmr_debug::testing {

struct is_equal_findings {
    bool reflexive = true;        ///< r == r
    bool symmetric = true;        ///< a == b says the same as b == a
    bool stable = true;           ///< asked again, it says the same
    bool knows_strangers = true;  ///< it is not equal to a resource of another type
    /// Equal ones share their state: two with an upstream each that both used are not equal.
    bool separate = true;

    [[nodiscard]] bool ok() const noexcept { return reflexive && symmetric && stable && knows_strangers && separate; }
};

/// Returns: what the laws of equality say about \p a and \p b. Calls is_equal only.
[[nodiscard]] inline is_equal_findings audit_is_equal(const std::pmr::memory_resource& a,
                                                      const std::pmr::memory_resource& b) noexcept {
    is_equal_findings f;
    const bool equal = a.is_equal(b);
    f.reflexive = a.is_equal(a) && b.is_equal(b);
    f.symmetric = equal == b.is_equal(a);
    f.stable = equal == a.is_equal(b);
    return f;
}

/// Effects: makes two \p Resource, each on an upstream of its own, lets each allocate once, and holds what they say of
///   each other against what their upstreams saw.
/// Preconditions: Resource can be constructed from a std::pmr::memory_resource*.
template <class Resource>
[[nodiscard]] is_equal_findings audit_is_equal() {
    collecting_handler not_of_interest;  // an arena gives its blocks back as a whole, so nothing here is an error
    tracking_resource below_a({.handler = &not_of_interest});
    tracking_resource below_b({.handler = &not_of_interest});
    Resource a(static_cast<std::pmr::memory_resource*>(&below_a));
    Resource b(static_cast<std::pmr::memory_resource*>(&below_b));
    std::pmr::memory_resource& ra = a;
    std::pmr::memory_resource& rb = b;

    is_equal_findings f = audit_is_equal(ra, rb);
    f.knows_strangers = !ra.is_equal(*std::pmr::new_delete_resource()) && !ra.is_equal(below_a);

    constexpr std::size_t bytes = 64;
    void* const p = ra.allocate(bytes);
    const bool a_below = below_a.stats().total_allocations != 0 && below_b.stats().total_allocations == 0;
    void* const q = rb.allocate(bytes);
    const bool b_below = below_b.stats().total_allocations != 0;
    f.separate = !(a_below && b_below && (ra.is_equal(rb) || rb.is_equal(ra)));
    ra.deallocate(p, bytes);
    rb.deallocate(q, bytes);
    return f;
}

}  // namespace pmr_debug::testing

#endif  // PMR_DEBUG_LANGUAGE
