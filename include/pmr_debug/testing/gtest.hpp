#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Glue for GoogleTest. The library itself does not depend on it.
///
/// \code
///   #include <pmr_debug/testing/gtest.hpp>
///   pmr_debug::tracking_resource memory;
///   std::pmr::vector<int> v(&memory);
///   EXPECT_ALLOCATIONS(memory, 1, v.reserve(10));
///   EXPECT_ALLOCATIONS(memory, 0, v.push_back(1); v.push_back(2));
///   v = {};
///   v.shrink_to_fit();
///   EXPECT_NO_LEAKS(memory);
/// \endcode

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>
#include <pmr_debug/testing/allocation_failures.hpp>
#include <pmr_debug/testing/default_resource_guard.hpp>
#include <pmr_debug/testing/resource_monitor.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pmr_debug {

/// Found by GoogleTest when it prints values.
inline void PrintTo(error_kind kind, std::ostream* out) {  // NOLINT(readability-identifier-naming)
    *out << to_string(kind);
}

namespace testing {

inline void PrintTo(const failure_test_result& r, std::ostream* out) {  // NOLINT(readability-identifier-naming)
    write_text(
        r, [](std::string_view text, void* context) noexcept { *static_cast<std::ostream*>(context) << text; }, out);
}

namespace detail {

template <has_statistics R>
::testing::AssertionResult no_leaks(const char* expression, R& resource) {
    const statistics s = resource.stats();
    if (s.live_blocks == 0) {
        return ::testing::AssertionSuccess();
    }
    if constexpr (requires { resource.report_leaks(); }) {
        resource.report_leaks();  // to its handler, with the traces
    }
    return ::testing::AssertionFailure() << expression << " has " << s.live_bytes << " bytes in " << s.live_blocks
                                         << (s.live_blocks == 1 ? " block" : " blocks") << " in use";
}

inline ::testing::AssertionResult allocations(const char* resource, const char* expected, std::int64_t wanted,
                                              const resource_monitor& since) {
    const std::int64_t made = since.allocations();
    if (made == wanted) {
        return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure() << resource << " made " << made << " allocations of " << since.total_bytes()
                                         << " bytes together, expected " << expected;
}

inline std::uint64_t count_of(const collecting_handler& handler, error_kind kind) {
    return handler.count(kind);
}
template <class R>
requires requires(const R& r) {
    r.errors();
}
std::uint64_t count_of(const R& resource, error_kind kind) {
    return resource.errors()[kind];
}
inline std::string all_of(const collecting_handler& handler) {
    std::string text;
    for (std::size_t i = 0; i < handler.size(); ++i) {
        text += handler[i].text;
    }
    return text;
}
template <class R>
std::string all_of(const R& resource) {
    std::string text;
    for (std::size_t i = 0; i < error_kind_count; ++i) {
        const auto kind = static_cast<error_kind>(i);
        if (resource.errors()[kind] != 0) {
            text += std::string(to_string(kind)) + ": " + std::to_string(resource.errors()[kind]) + "\n";
        }
    }
    return text;
}

template <class Source>
::testing::AssertionResult reported(const char* source, const char* /*kind*/, const Source& from, error_kind kind) {
    if (count_of(from, kind) != 0) {
        return ::testing::AssertionSuccess();
    }
    const std::string others = all_of(from);
    return ::testing::AssertionFailure() << source << " knows of no " << to_string(kind)
                                         << (others.empty() ? std::string(", nor of any other error")
                                                            : ", but of\n" + others);
}

}  // namespace detail

/// Fails every test in which a watched resource ends up with more live blocks than it began with. The failure belongs
/// to that test, and blocks left over are not held against the next one.
///
/// \code
///   #include <pmr_debug/testing/gtest.hpp>
///   static pmr_debug::tracking_resource memory;
///   pmr_debug::testing::leak_listener::install().watch(memory, "memory");  // in main(), before RUN_ALL_TESTS()
/// \endcode
///
/// Thread safety: GoogleTest's main thread.
class leak_listener final : public ::testing::EmptyTestEventListener {
public:
    /// Returns: the listener; installs it with GoogleTest at first.
    static leak_listener& install() {
        static leak_listener* const listener = [] {
            auto* const made = new leak_listener;  // GoogleTest owns it
            ::testing::UnitTest::GetInstance()->listeners().Append(made);
            return made;
        }();
        return *listener;
    }

    /// Effects: watches \p resource from the next test on. Preconditions: it outlives the tests, or is unwatched.
    template <has_statistics R>
    void watch(const R& resource, std::string name) {
        watched_.push_back({&resource, std::move(name), resource_monitor(resource)});
    }
    template <has_statistics R>
    void unwatch(const R& resource) {
        std::erase_if(watched_, [&](const entry& e) { return e.resource == &resource; });
    }

private:
    struct entry {
        const void* resource;
        std::string name;
        resource_monitor since;
    };

    void OnTestStart(const ::testing::TestInfo& /*test*/) override {
        for (entry& e : watched_) {
            e.since.reset();
        }
    }
    void OnTestEnd(const ::testing::TestInfo& test) override {
        for (const entry& e : watched_) {
            if (e.since.live_blocks() > 0) {
                ADD_FAILURE() << test.test_suite_name() << '.' << test.name() << " leaked " << e.since.live_bytes()
                              << " bytes in " << e.since.live_blocks() << " blocks of " << e.name;
            }
        }
    }

    std::vector<entry> watched_;
};

/// A fixture: `object` for what is under test, `standard` as the default resource, and every use of `standard` counted,
/// so that a test can say that there was none. At the end of each test nothing may be in use, and no error reported;
/// call `expect_errors()` where that is the point.
class memory_test : public ::testing::Test {
protected:
    memory_test()
        : object({.name = "object", .handler = &errors}),
          standard({.name = "standard", .handler = &errors}),
          as_default_(&standard, &errors) {}

    void TearDown() override {
        EXPECT_PRED_FORMAT1(detail::no_leaks<tracking_resource>, object);
        EXPECT_PRED_FORMAT1(detail::no_leaks<tracking_resource>, standard);
        if (!errors_expected_) {
            EXPECT_EQ(errors.count(), 0U) << detail::all_of(errors);
        }
    }

    void expect_errors() noexcept { errors_expected_ = true; }
    /// Fails the test if anything was allocated from the default resource so far.
    void expect_default_untouched() {
        EXPECT_EQ(standard.stats().total_allocations, 0U) << "allocated from the default resource";
    }

    collecting_handler errors;
    tracking_resource object;
    tracking_resource standard;

private:
    default_resource_guard as_default_;
    bool errors_expected_ = false;
};

/// memory_test where using the default resource is an error: every allocation from it is reported as
/// default_resource_used, with the trace, and fails the test. It is carried out by `standard`, so the test goes on. To
/// allow it for a scope, as for setting up, make `standard` the default there with a default_resource_guard.
///
/// \code
///   #include <pmr_debug/testing/gtest.hpp>
///   class index_test : public pmr_debug::testing::forbidden_default_test {};  // TEST_F(index_test, …)
/// \endcode
class forbidden_default_test : public memory_test {
protected:
    forbidden_default_test() : forbidden(on_default_use::report, &errors) {}

    forbid_default_resource forbidden;
};

}  // namespace testing

}  // namespace pmr_debug

/// Fails if \p resource has blocks in use; where it can, it sends its leak report to its handler then.
#define EXPECT_NO_LEAKS(resource) \
    EXPECT_PRED_FORMAT1([](const char* e, auto& r) { return ::pmr_debug::testing::detail::no_leaks(e, r); }, resource)

/// Runs the statements, and fails unless \p resource made exactly \p n allocations meanwhile.
#define EXPECT_ALLOCATIONS(resource, n, ...)                                                                         \
    do {                                                                                                             \
        const ::pmr_debug::testing::resource_monitor pmr_debug_since(resource);                                      \
        { __VA_ARGS__; }                                                                                             \
        const ::testing::AssertionResult pmr_debug_result =                                                          \
            ::pmr_debug::testing::detail::allocations(#resource, #n, static_cast<std::int64_t>(n), pmr_debug_since); \
        if (!pmr_debug_result) {                                                                                     \
            ADD_FAILURE() << pmr_debug_result.message();                                                             \
        }                                                                                                            \
    } while (false)

/// Fails unless \p source, a collecting_handler or a resource, knows of an error of \p kind.
#define EXPECT_REPORT(source, kind)                                                          \
    EXPECT_PRED_FORMAT2(                                                                     \
        [](const char* s, const char* k, const auto& from, ::pmr_debug::error_kind wanted) { \
            return ::pmr_debug::testing::detail::reported(s, k, from, wanted);               \
        },                                                                                   \
        source, kind)

#endif  // PMR_DEBUG_LANGUAGE
