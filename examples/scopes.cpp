/// \file
/// Who holds how much: a tracking resource on top of another is its child, and the tree says what goes where.

#include <pmr_debug/pmr_debug.hpp>

#include <cstdio>
#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

namespace {

void print(std::string_view text, void* /*context*/) noexcept {
    std::fwrite(text.data(), 1, text.size(), stdout);
}

}  // namespace

int main() {
    pmr_debug::tracking_resource game({.name = "game"});
    pmr_debug::tracking_resource textures(&game, {.name = "textures"});
    pmr_debug::tracking_resource script(&game, {.name = "script"});

    const std::pmr::vector<std::byte> stone(1 << 20, &textures);
    const std::pmr::vector<std::pmr::string> lines(100, "a line of a script, longer than a string holds in itself",
                                                   &script);
    game.write_tree(print, nullptr);
}
