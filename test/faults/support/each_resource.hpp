#pragma once

// The resources that the programs of test/faults try one after another, by name.

#include <pmr_debug/pmr_debug.hpp>

#include <functional>
#include <string>

namespace faults {

/// A resource, with what all of them can do but std::pmr::memory_resource does not have.
struct subject {
    std::pmr::memory_resource& resource;
    std::function<pmr_debug::statistics()> stats;
    std::function<void()> check = [] {};
};

inline constexpr pmr_debug::policy quarantined{.freed = pmr_debug::reuse::quarantined};
inline constexpr pmr_debug::policy immediate{.freed = pmr_debug::reuse::immediate, .dead = pmr_debug::dead_unit::keep};

inline constexpr const char* subjects[] = {
    "page", "general_purpose", "thorough", "fast",  "immediate", "quarantine", "tracking", "canary",
    "end",  "end_quarantine",  "temp",     "limit", "failing",   "logging",    "proxy",    "chain"};

inline constexpr pmr_debug::policy shared_temp = [] {
    pmr_debug::policy p = pmr_debug::temp_policy;
    p.threads = pmr_debug::threading::synchronized;
    return p;
}();

/// Effects: calls \p visit with a new resource of the kind \p name, which reports to \p handler. \p below is the
/// upstream of those that do not take pages themselves. Returns: false if there is no such kind.
template <class Visit>
bool with_resource(const std::string& name, pmr_debug::report_handler* handler, Visit visit,
                   std::pmr::memory_resource* below = std::pmr::new_delete_resource()) {
    using namespace pmr_debug;
    const auto checked = [&](auto& r) {
        visit(subject{r, [&r] { return r.stats(); }, [&r] { (void)r.check(); }});
        return true;
    };
    const auto thin = [&](auto& r) {
        visit(subject{r, [&r] { return r.stats(); }});
        return true;
    };
    const general_purpose_options general{.name = "heap", .handler = handler};
    page_resource pages({.handler = handler});
    if (name == "page") {
        return thin(pages);
    }
    if (name == "general_purpose") {
        general_purpose_resource r(&pages, general);
        return checked(r);
    }
    if (name == "thorough") {
        basic_general_purpose_resource<thorough_policy> r(&pages, general);
        return checked(r);
    }
    if (name == "fast") {
        basic_general_purpose_resource<fast_policy> r(&pages, general);
        return checked(r);
    }
    if (name == "immediate") {
        basic_general_purpose_resource<immediate> r(&pages, general);
        return checked(r);
    }
    if (name == "quarantine") {
        basic_general_purpose_resource<quarantined> r(
            &pages, {.name = "heap", .handler = handler, .quarantine_bytes = std::size_t{1} << 20});
        return checked(r);
    }
    if (name == "tracking") {
        tracking_resource r(below, {.name = "heap", .handler = handler});
        return thin(r);
    }
    if (name == "canary") {
        canary_resource r(below, {.name = "heap", .handler = handler});
        return checked(r);
    }
    if (name == "end") {
        end_of_page_resource r({.name = "heap", .handler = handler});
        return checked(r);
    }
    if (name == "end_quarantine") {
        basic_end_of_page_resource<quarantined> r({.name = "heap", .handler = handler});
        return checked(r);
    }
    if (name == "temp") {
        temp_resource<0, shared_temp> r(below, {.name = "heap", .handler = handler});
        return checked(r);
    }
    if (name == "limit") {
        limit_resource r(below, {.name = "heap", .handler = handler});
        return thin(r);
    }
    if (name == "failing") {
        failing_resource r(below, {.name = "heap", .handler = handler});
        return thin(r);
    }
    if (name == "logging") {
        logging_resource r(below,
                           {.name = "heap", .handler = handler, .sink = [](std::string_view, void*) noexcept {}});
        return thin(r);
    }
    if (name == "proxy") {
        immortal_proxy p(below, {.name = "heap", .handler = handler});
        visit(subject{*p.resource(), [&p] { return p.stats(); }});
        return true;
    }
    if (name == "chain") {
        general_purpose_resource heap(&pages, general);
        tracking_resource r(&heap, {.name = "top", .handler = handler});
        return thin(r);
    }
    return false;
}

/// Effects: calls \p visit for each kind of resource, with its name.
template <class Visit>
void with_each_resource(pmr_debug::report_handler* handler, Visit visit) {
    for (const char* const name : subjects) {
        with_resource(name, handler, [&](const subject& s) { visit(name, s); });
    }
}

}  // namespace faults
