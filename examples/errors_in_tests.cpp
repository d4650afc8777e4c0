/// \file
/// How a test asks whether code handles memory well: a `collecting_handler` takes reports instead of printing them, and
/// each resource counts its errors. With a test framework, `check()` below is an assertion of its own.

#include <pmr_debug/pmr_debug.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory_resource>
#include <string>
#include <vector>

namespace {

void check(bool holds, const char* what) {
    std::printf("%s: %s\n", holds ? "ok" : "FAILED", what);
    if (!holds) {
        std::exit(EXIT_FAILURE);
    }
}

// What is tested: it must take all its memory from the resource, and give all of it back.
std::size_t longest(const std::vector<const char*>& texts, std::pmr::memory_resource& memory) {
    std::pmr::vector<std::pmr::string> copies(texts.begin(), texts.end(), &memory);
    std::size_t most = 0;
    for (const std::pmr::string& copy : copies) {
        most = copy.size() > most ? copy.size() : most;
    }
    return most;
}

}  // namespace

int main() {
    pmr_debug::collecting_handler errors;
    {
        pmr_debug::general_purpose_resource memory({.name = "under test", .handler = &errors});

        const char* const text = "a text that does not fit into a string itself";
        check(longest({"short", text}, memory) == std::strlen(text), "the right answer");
        check(memory.stats().live_blocks == 0, "every block was given back");
        check(memory.stats().total_allocations == 2, "no more allocations than needed");

        // And one that does it wrong, to see that it is noticed. The handler says carry on, so the call is ignored.
        void* const p = memory.allocate(8);
        memory.deallocate(p, 8);
        memory.deallocate(p, 8);
        check(errors.count(pmr_debug::error_kind::double_free) == 1, "a double free is reported");
        check(errors.back().facts.pointer == p, "... of this very block");
    }
    // The resource is gone: leaks and damage that only its end can find are in the count, too.
    check(errors.count() == 1, "nothing else is");
}
