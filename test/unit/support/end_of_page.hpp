#pragma once

// What the tests of the end-of-page resource share: whether an access faults, forced tiers, policies.

#include "os/virtual_memory.hpp"

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/end_of_page_resource.hpp>

#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdint>

namespace test_support::end_of_page {

using pmr_debug::basic_end_of_page_resource;
using pmr_debug::collecting_handler;
using pmr_debug::end_of_page_options;
using pmr_debug::end_of_page_resource;
using pmr_debug::error_kind;
using pmr_debug::placement;
using pmr_debug::policy;
using pmr_debug::report;
using pmr_debug::threading;
using pmr_debug::os::guard_tier;

inline constexpr std::size_t page = 4096;
inline constexpr policy at_once{.dead = pmr_debug::dead_unit::trap_at_once};
inline constexpr policy keeping{.dead = pmr_debug::dead_unit::keep};
inline constexpr policy single{.threads = threading::single_checked};
inline constexpr policy unchecked{.threads = threading::unchecked};

// ---- Faults, in children ----------------------------------------------------------------------------------------

enum class access : std::uint8_t { read, write };

__attribute__((noinline, no_sanitize("address", "thread"))) inline void touch(volatile unsigned char* p, access how) {
    if (how == access::read) {
        [[maybe_unused]] const unsigned char seen = *p;
    } else {
        *p = 0x41;
    }
}

/// Whether touching \p p ends a process.
inline bool faults(void* p, access how) {
    const pid_t child = ::fork();
    if (child == 0) {
        std::signal(SIGSEGV, SIG_DFL);  // a sanitizer has a handler of its own
        std::signal(SIGBUS, SIG_DFL);
        touch(static_cast<volatile unsigned char*>(p), how);
        ::_exit(0);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS);
}

/// True if both a read and a write fault; false if neither does.
inline bool faults(void* p) {
    const bool reading = faults(p, access::read);
    EXPECT_EQ(faults(p, access::write), reading);
    return reading;
}

inline unsigned char* bytes(void* p) {
    return static_cast<unsigned char*>(p);
}

/// For a scope, no tier above this one.
class forced_tier {
public:
    explicit forced_tier(guard_tier t) { pmr_debug::os::force_guard_tier(t); }
    forced_tier(const forced_tier&) = delete;
    forced_tier& operator=(const forced_tier&) = delete;
    ~forced_tier() { pmr_debug::os::force_guard_tier(guard_tier::marker); }
};

inline bool has_markers() {
    void* const p = pmr_debug::os::map(page, page);
    const bool has = pmr_debug::os::install_guard(p, page) == guard_tier::marker;
    pmr_debug::os::unmap(p, page);
    pmr_debug::os::force_guard_tier(guard_tier::marker);
    return has;
}

template <class Resource>
struct owner {
    collecting_handler errors;
    Resource resource;
    explicit owner(end_of_page_options o = {}) : resource((o.handler = &errors, o)) {}
};

struct fence : ::testing::Test {
    collecting_handler errors;
    end_of_page_resource resource{end_of_page_options{.name = "fence", .handler = &errors}};

    [[nodiscard]] report only(error_kind kind) {
        EXPECT_EQ(errors.count(), 1U);
        EXPECT_EQ(errors.count(kind), 1U) << (errors.size() != 0 ? errors[0].text : "");
        return errors.size() != 0 ? errors[0].facts : report{};
    }
};

struct fence_before : ::testing::Test {
    collecting_handler errors;
    end_of_page_resource resource{end_of_page_options{.handler = &errors, .where = placement::after_guard}};
};

}  // namespace test_support::end_of_page
