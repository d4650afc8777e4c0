// Lines about memory that comes from the default resource unasked: 14, 15, 38, 43.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>
#include <pmr_debug/testing/default_resource_guard.hpp>
#include <pmr_debug/testing/propagation_check.hpp>

#include <memory_resource>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace catalogue {

namespace {

constexpr const char* long_text = "a text that does not fit into a string itself";

// An arena beside a default resource that nobody may use.
struct on_an_arena {
    pmr_debug::general_purpose_resource arena{{.name = "arena"}};
    pmr_debug::testing::forbid_default_resource nobody{};
};

// ---- 14: an element that does not take an allocator

struct person {
    std::string nick;
    std::pmr::string name;
};

struct pmr_person {
    int age = 0;
    std::pmr::string name;
};

struct aware_person {
    using allocator_type = std::pmr::polymorphic_allocator<>;

    explicit aware_person(allocator_type a = {}) : name(a) {}
    aware_person(const aware_person& other, allocator_type a) : nick(other.nick), name(other.name, a) {}
    aware_person(aware_person&& other, allocator_type a)
        : nick(std::move(other.nick)), name(std::move(other.name), a) {}
    aware_person(const aware_person&) = default;
    aware_person(aware_person&&) = default;

    std::string nick;
    std::pmr::string name;
};

[[maybe_unused]] auto propagation_members(const aware_person& p) {
    return std::tie(p.name);
}

}  // namespace

template <class Person>
CATALOGUE_NOINLINE void add_a_person(std::pmr::vector<Person>& people) {
    people.emplace_back();
    people.back().name = long_text;
}

static void stores_elements_that_take_no_allocator(bool planted) {
    on_an_arena here;
    if (planted) {
        std::pmr::vector<person> people(&here.arena);
        add_a_person(people);
    } else {
        std::pmr::vector<aware_person> people(&here.arena);
        add_a_person(people);
    }
}

static void looks_where_elements_are(bool planted) {
    pmr_debug::general_purpose_resource arena({.name = "arena"});
    const auto look = [](const auto& people) {
        const auto found = pmr_debug::testing::check_propagation(people);
        if (found.what() == pmr_debug::testing::misplacement::other_resource) {
            note(std::string(found.path()) + " is on another resource than its container\n");
        }
    };
    if (planted) {
        std::pmr::vector<pmr_person> people(&arena);
        people.emplace_back();
        look(people);
    } else {
        std::pmr::vector<aware_person> people(&arena);
        people.emplace_back();
        look(people);
    }
}

// ---- 15: a copy

static void copies_a_text(bool planted) {
    on_an_arena here;
    const std::pmr::string original(long_text, &here.arena);
    if (planted) {
        const std::pmr::string copy(original);
    } else {
        const std::pmr::string copy(original, &here.arena);
    }
}

// ---- 38: operator+

static void adds_to_a_text(bool planted) {
    on_an_arena here;
    std::pmr::string s(long_text, &here.arena);
    if (planted) {
        const auto t = s + "x";
    } else {
        std::pmr::string t(s, &here.arena);
        t += "x";
    }
}

// ---- 43: a temporary

static void pushes_a_literal(bool planted) {
    on_an_arena here;
    std::pmr::vector<std::pmr::string> v(&here.arena);
    if (planted) {
        v.push_back(long_text);
    } else {
        v.emplace_back(long_text);
    }
}

std::vector<bug> default_bugs() {
    using enum pmr_debug::error_kind;
    const auto unasked = [](const char* line, const char* name, void (*run)(bool), const char* here) {
        return bug{.line = line,
                   .name = name,
                   .found_by = "forbid_default_resource",
                   .run = run,
                   .findings = {{.kind = default_resource_used, .here = here}}};
    };
    return {
        unasked("14", "unaware_element", stores_elements_that_take_no_allocator, "add_a_person"),
        {.line = "14",
         .name = "element_elsewhere",
         .found_by = "check_propagation",
         .run = looks_where_elements_are,
         .notes = "[0].1 is on another resource"},
        unasked("15", "copied_text", copies_a_text, "copies_a_text"),
        // The copy, and then its growth.
        {.line = "38",
         .name = "added_text",
         .found_by = "forbid_default_resource",
         .run = adds_to_a_text,
         .findings = {{.kind = default_resource_used, .here = "adds_to_a_text"},
                      {.kind = default_resource_used, .here = "adds_to_a_text"}}},
        unasked("43", "pushed_literal", pushes_a_literal, "pushes_a_literal"),
    };
}

}  // namespace catalogue
