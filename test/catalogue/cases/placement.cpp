// Lines about memory from, or back to, another resource than was meant: 14, 15, 38, 43, 44, 18, 36, 37.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>
#include <pmr_debug/testing/resource_monitor.hpp>

#include <forward_list>
#include <list>
#include <map>
#include <memory_resource>
#include <string>
#include <utility>
#include <vector>

namespace catalogue {

CATALOGUE_NOINLINE static void fill_one(std::pmr::vector<int>& v, int value) {
    v.assign(4, value);
}

// ---- 18: swap exchanges the buffers, but never the resources

CATALOGUE_NOINLINE static void swap_them(std::pmr::vector<int>& a, std::pmr::vector<int>& b) {
    a.swap(b);
}

static void swaps_across_resources(bool planted) {
    deep_pool left({.name = "left"});
    deep_pool right({.name = "right"});
    std::pmr::vector<int> a(&left);
    std::pmr::vector<int> b(planted ? &right : &left);
    fill_one(a, 1);
    fill_one(b, 2);
    swap_them(a, b);
}

// ---- 37: a node goes to whatever container it is given to

static void inserts_a_node_across_resources(bool planted) {
    deep_pool old_home({.name = "old home"});
    deep_pool new_home({.name = "new home"});
    std::pmr::map<int, int> from({{1, 10}, {2, 20}}, &old_home);
    std::pmr::map<int, int> to(planted ? &new_home : &old_home);
    to.insert(from.extract(1));
}

// ---- 36: list::splice is ended by libstdc++ itself, without a word; forward_list's goes unnoticed

CATALOGUE_NOINLINE static void splice_them(std::pmr::list<int>& a, std::pmr::list<int>& b) {
    a.splice(a.begin(), b);
    asm volatile("" : : "r"(&a) : "memory");
}

static void splices_lists_across_resources(bool planted) {
    const pmr_debug::fault_handler explain_aborts;
    deep_pool left({.name = "left"});
    deep_pool right({.name = "right"});
    std::pmr::list<int> a({1}, &left);
    std::pmr::list<int> b({2}, planted ? &right : &left);
    splice_them(a, b);
}

static void splices_across_resources(bool planted) {
    deep_pool left({.name = "left"});
    deep_pool right({.name = "right"});
    std::pmr::forward_list<int> a({1}, &left);
    std::pmr::forward_list<int> b({2}, planted ? &right : &left);
    a.splice_after(a.before_begin(), b);
}

// ---- 44: a move that copies

static void moves_across_resources(bool planted) {
    pmr_debug::tracking_resource memory({.name = "memory"});
    pmr_debug::tracking_resource scratch({.name = "scratch"});
    std::pmr::vector<int> keep(&memory);
    std::pmr::vector<int> tmp({1, 2, 3}, planted ? &scratch : &memory);
    const pmr_debug::testing::resource_monitor since(memory);
    keep = std::move(tmp);
    if (since.allocations() != 0) {
        note("expected 0 allocations, " + std::to_string(since.allocations()) + " made\n");
    }
}

std::vector<bug> placement_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "18",
         .name = "swap_across_resources",
         .found_by = "general_purpose",
         .run = swaps_across_resources,
         .findings = {{.kind = wrong_resource,
                       .resource = "right",
                       .owner = "left",
                       .here = "swaps_across_resources",
                       .allocated = "fill_one",
                       .size = 16},
                      {.kind = wrong_resource,
                       .resource = "left",
                       .owner = "right",
                       .here = "swaps_across_resources",
                       .allocated = "fill_one",
                       .size = 16},
                      {.kind = leak, .resource = "right", .blocks = 1},
                      {.kind = leak, .resource = "left", .blocks = 1}}},
        {.line = "44",
         .name = "move_that_copies",
         .found_by = "resource_monitor",
         .run = moves_across_resources,
         .notes = "expected 0 allocations, 1 made"},
        {.line = "36",
         .name = "splice_across_resources",
         .found_by = "general_purpose",
         .run = splices_across_resources,
         .findings = {{.kind = wrong_resource,
                       .resource = "left",
                       .owner = "right",
                       .here = "splices_across_resources",
                       .allocated = "splices_across_resources"},
                      {.kind = leak, .resource = "right", .blocks = 1}}},
        {.line = "36",
         .name = "splice_of_lists",
         .found_by = "fault_handler",
         .run = splices_lists_across_resources,
         .findings = {{.kind = wrong_resource,
                       .resource = "left",
                       .owner = "right",
                       .here = "splice_them",
                       .text = "nodes of a container on \"right\" were to go to one on \"left\""}},
         .end = ending::aborts},
        {.line = "37",
         .name = "node_across_resources",
         .found_by = "general_purpose",
         .run = inserts_a_node_across_resources,
         .findings = {{.kind = wrong_resource,
                       .resource = "new home",
                       .owner = "old home",
                       .here = "inserts_a_node_across_resources",
                       .allocated = "inserts_a_node_across_resources"},
                      {.kind = leak, .resource = "old home", .blocks = 1}}},
    };
}

}  // namespace catalogue
