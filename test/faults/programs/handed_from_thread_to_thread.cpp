// An arena for a request, whose stages run on one thread after the other. Without a word that is foreign_thread, whose
// hint says what to do; with "rebind" it is done.
#include <pmr_debug/pmr_debug.hpp>

#include <memory_resource>
#include <string>
#include <thread>
#include <vector>

int main(int argc, char**) {
    const bool rebinds = argc > 1;
    pmr_debug::temp_resource<> arena({.name = "request"});
    std::pmr::vector<std::pmr::string> fields(&arena);
    const auto stage = [&] {
        if (rebinds) {
            arena.rebind_thread();
        }
        fields.emplace_back("a field that is longer than the small buffer of a string");
    };
    std::thread(stage).join();
    std::thread(stage).join();
    if (rebinds) {
        arena.rebind_thread();
    }
    fields.clear();
    fields.shrink_to_fit();
    arena.release();
}
