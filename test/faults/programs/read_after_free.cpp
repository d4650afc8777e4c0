// Views into strings whose text lies in the vector's elements: when the vector grows they point into its former block.
//   read_after_free fence|heap|thorough|heap_immediate|heap_elsewhere|release plain|none|later|all|sized|some
// later: a thousand blocks were allocated and freed before.
// Prints the byte it read, if it comes to that, and how many chosen blocks could not be trapped.

#include <pmr_debug/pmr_debug.hpp>

#include <cstdio>
#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

namespace {

bool later = false;

template <class Resource>
int read_late(Resource& memory) {
    for (int i = 0; i < (later ? 1'000 : 0); ++i) {
        memory.deallocate(memory.allocate(8), 8);
    }
    std::pmr::vector<std::pmr::string> names(&memory);
    std::vector<std::string_view> views;
    for (int i = 0; i < 20; ++i) {
        names.emplace_back("short");
        views.emplace_back(names.back());
    }
    std::printf("untrapped %llu\n", static_cast<unsigned long long>(memory.stats().untrapped_blocks));
    std::fflush(stdout);
    std::printf("read %02x\n", static_cast<unsigned>(static_cast<unsigned char>(views[3][0])));
    return 0;
}

constexpr pmr_debug::policy immediate{.freed = pmr_debug::reuse::immediate, .dead = pmr_debug::dead_unit::keep};

}  // namespace

int main(int argc, char** argv) {
    const std::string_view which = argc > 1 ? argv[1] : "";
    const std::string_view choice = argc > 2 ? argv[2] : "";
    pmr_debug::trap_selection trap;
    if (choice == "all") {
        trap.one_in = 1;
    } else if (choice == "sized") {
        trap.at_least = 4 * sizeof(std::pmr::string);  // the block that views[3] points into, and larger ones
    } else if (choice == "some") {
        trap.one_in = 1'000;
    } else if (choice == "none") {
        trap.first = 0;
    }
    later = choice == "later";
    const pmr_debug::fault_handler faults;
    if (which == "fence") {
        pmr_debug::end_of_page_resource memory({.name = "fence", .trap_freed = trap});
        return read_late(memory);
    }
    if (which == "heap_elsewhere") {
        pmr_debug::general_purpose_resource memory({.name = "heap", .trap_freed = trap});
        return read_late(memory);
    }
    pmr_debug::page_resource pages;
    if (which == "thorough") {
        pmr_debug::basic_general_purpose_resource<pmr_debug::thorough_policy> memory(
            &pages, {.name = "heap", .trap_freed = trap});
        return read_late(memory);
    }
    if (which == "heap_immediate") {
        pmr_debug::basic_general_purpose_resource<immediate> memory(&pages, {.name = "heap", .trap_freed = trap});
        return read_late(memory);
    }
    if (which == "release") {
        pmr_debug::basic_general_purpose_resource<pmr_debug::release_policy> memory(
            &pages, {.name = "heap", .trap_freed = trap});
        return read_late(memory);
    }
    pmr_debug::general_purpose_resource memory(&pages, {.name = "heap", .trap_freed = trap});
    return read_late(memory);
}
